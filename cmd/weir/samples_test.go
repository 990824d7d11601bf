package main

import (
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"weir/configs"
	"weir/edge"
	"weir/internal/discoverynode"
	"weir/origin"
)

// samples are the files of configs/ and the role that each is for. A file that is
// not here fails TestSamples.
var samples = map[string]string{
	"discovery.yaml":       "discovery",
	"discovery-etcd.yaml":  "discovery",
	"origin.yaml":          "origin",
	"origin-peers.yaml":    "origin",
	"origin-tenants.yaml":  "origin",
	"edge.yaml":            "edge",
	"edge-standalone.yaml": "edge",
	"edge-tenants.yaml":    "edge",
}

const samplesDir = "../../configs"

// load parses a configuration as the command of its role does.
func load(t *testing.T, name, text, role string) {
	t.Helper()
	got, err := configs.RoleOf(name, []byte(text))
	if err != nil {
		t.Error(err)
		return
	}
	if role != "" && got != role {
		t.Errorf("%s: role is %s, want %s", name, got, role)
		return
	}
	if err := configs.Parse(name, []byte(text), defaultsOf(got)); err != nil {
		t.Error(err)
	}
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestSamples(t *testing.T) {
	files, err := filepath.Glob(samplesDir + "/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, file := range files {
		name := filepath.Base(file)
		found[name] = true
		role, ok := samples[name]
		if !ok {
			t.Errorf("configs/%s is not covered by this test: add it to samples", name)
			continue
		}
		text := readFile(t, file)
		load(t, name, text, role)
		// A sample says how it is run.
		for _, command := range []string{"weir check -c configs/" + name, "weir " + role + " -c configs/" + name} {
			if !strings.Contains(text, "#   "+command+"\n") {
				t.Errorf("%s does not say %q", name, command)
			}
		}
	}
	for name := range samples {
		if !found[name] {
			t.Errorf("there is no configs/%s", name)
		}
	}
}

// The samples are one cluster, or one of tenants, as they are: same token, same
// discovery server, origins that are there, publish keys that the origin takes.
func TestSamplesFitTogether(t *testing.T) {
	parse := func(name string, into any) {
		t.Helper()
		if err := configs.Parse(name, []byte(readFile(t, filepath.Join(samplesDir, name))), into); err != nil {
			t.Fatal(err)
		}
	}
	directory := discoverynode.Default()
	parse("discovery.yaml", &directory)
	_, port, err := net.SplitHostPort(directory.Listen)
	if err != nil {
		t.Fatal(err)
	}
	const theOrigin, another, theEdge, theDirectory = "10.0.0.11", "10.0.0.12", "10.0.0.21", "10.0.0.1"
	asks := func(name string, urls []string, token configs.Secret) {
		t.Helper()
		if want := []string{"http://" + net.JoinHostPort(theDirectory, port)}; !slices.Equal(urls, want) {
			t.Errorf("%s asks %q for streams, want %q", name, urls, want)
		}
		if token != directory.Token {
			t.Errorf("%s does not have the token of discovery.yaml", name)
		}
	}
	at := func(name, listen, advertised, host string) {
		t.Helper()
		if _, port, _ := net.SplitHostPort(listen); advertised != net.JoinHostPort(host, port) {
			t.Errorf("%s advertises %s, listens on %s and is %s", name, advertised, listen, host)
		}
	}
	for _, pair := range [][2]string{{"origin.yaml", "edge.yaml"}, {"origin-tenants.yaml", "edge-tenants.yaml"}, {"origin.yaml", "edge-standalone.yaml"}} {
		o, e := origin.Default(), edge.Default()
		parse(pair[0], &o)
		parse(pair[1], &e)
		asks(pair[0], o.Discovery.URLs, o.Discovery.Token)
		at(pair[0], o.RTMP.Listen, o.Advertise.RTMP, theOrigin)
		at(pair[0], o.HTTP.Listen, o.Advertise.HTTP, theOrigin)
		if pair[1] != "edge-standalone.yaml" {
			asks(pair[1], e.Discovery.URLs, e.Discovery.Token)
			at(pair[1], e.RTMP.Listen, e.Advertise.RTMP, theEdge)
			at(pair[1], e.HTTP.Listen, e.Advertise.HTTP, theEdge)
		}
		for name, v := range e.Vhosts {
			atOrigin, ok := o.Vhosts[name]
			if !ok {
				t.Errorf("%s has the vhost %s, %s does not", pair[1], name, pair[0])
				continue
			}
			if !slices.Equal(v.Publish.Keys, atOrigin.Publish.Keys) {
				t.Errorf("%s and %s have different keys for %s", pair[1], pair[0], name)
			}
			found := len(v.Upstreams) == 0
			for _, upstream := range v.Upstreams {
				u, err := url.Parse(upstream)
				if err != nil {
					t.Fatal(err)
				}
				found = found || u.Host == o.Advertise.RTMP
				if u.Hostname() != theOrigin && u.Hostname() != another {
					t.Errorf("%s: %s: no sample is the upstream %s", pair[1], name, upstream)
				}
			}
			if !found {
				t.Errorf("%s: the upstreams of %s are %q, not the origin's %s", pair[1], name, v.Upstreams, o.Advertise.RTMP)
			}
		}
	}
}

// commentedSecret is an alternative that a sample shows in a comment: a key or a
// list item whose value comes from outside the file.
var commentedSecret = regexp.MustCompile(`^( *)# ((?:- |(\w+): ))\$\{(ENV|FILE):(.+)\}$`)

// Samples start as they are, so the secrets from outside stand in comments. Each of
// them, taken out of its comment, loads.
func TestSecretsOfSamples(t *testing.T) {
	tried := map[string]int{}
	for name, role := range samples {
		lines := strings.Split(readFile(t, filepath.Join(samplesDir, name)), "\n")
		for i, line := range lines {
			m := commentedSecret.FindStringSubmatch(line)
			if m == nil {
				if strings.Contains(line, "${") {
					t.Errorf("%s:%d: a reference in a form that this test does not know: %s", name, i+1, line)
				}
				continue
			}
			indent, item, key, kind, what := m[1], m[2], m[3], m[4], m[5]
			tried[kind]++
			t.Run(name+"/"+kind+":"+what, func(t *testing.T) {
				if kind == "ENV" {
					t.Setenv(what, "secret-of-the-environment")
				} else {
					what = filepath.Join(t.TempDir(), "secret")
					if err := os.WriteFile(what, []byte("secret-of-a-file\n"), 0o600); err != nil {
						t.Fatal(err)
					}
				}
				var out []string
				for j, l := range lines {
					switch {
					case j == i:
						l = indent + item + "${" + kind + ":" + what + "}"
					case key != "" && strings.HasPrefix(l, indent+key+": "):
						continue // the plain value that it stands for
					}
					out = append(out, l)
				}
				load(t, name, strings.Join(out, "\n"), role)
			})
		}
	}
	for _, kind := range []string{"ENV", "FILE"} {
		if tried[kind] == 0 {
			t.Errorf("no sample shows ${%s:...}", kind)
		}
	}
}
