package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"weir/configs"
)

// samples are the files of configs/ and the role that each is for. A file that is
// not here fails TestSamples.
var samples = map[string]string{
	"discovery.yaml":       "discovery",
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
