package configs

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"weir/internal/units"
)

// The types of a made-up node, with everything that a Config may hold.

type nodeConfig struct {
	Role    string                `yaml:"role"`
	Play    playConfig            `yaml:"play"`
	Peers   []string              `yaml:"peers"`
	Tenants []tenantConfig        `yaml:"tenants"`
	Hosts   map[string]hostConfig `yaml:"hosts"`
	TLS     *tlsConfig            `yaml:"tls"`
	Allow   []netip.Prefix        `yaml:"allow"`
	Shared  sharedConfig          `yaml:",inline"`
}

type playConfig struct {
	MaxLag  time.Duration `yaml:"max_lag"`
	MaxLog  units.Bytes   `yaml:"max_log_bytes"`
	Policy  policy        `yaml:"policy"`
	Share   float64       `yaml:"share"`
	Workers int8          `yaml:"workers"`
	Port    uint16        `yaml:"port"`
	CORS    bool          `yaml:"cors"`
}

type tenantConfig struct {
	Name   string        `yaml:"name"`
	Keys   []Secret      `yaml:"keys"`
	Linger time.Duration `yaml:"linger"`
}

func (t *tenantConfig) SetDefaults() { t.Linger = 10 * time.Second }

type hostConfig struct {
	Upstreams []string `yaml:"upstreams"`
	Weight    int      `yaml:"weight"`
}

type tlsConfig struct {
	Certificate string `yaml:"certificate"`
	Key         Secret `yaml:"key"`
}

type sharedConfig struct {
	Level string `yaml:"log_level"`
}

type policy string

func (policy) Choices() []string { return []string{"round_robin", "hash"} }

func defaultNode() nodeConfig {
	return nodeConfig{
		Role: "edge",
		Play: playConfig{MaxLag: 5 * time.Second, MaxLog: 16 * units.MiB, Policy: "round_robin", Share: 0.5},
		Peers: []string{
			"default:1",
		},
		Hosts:  map[string]hostConfig{"a.example": {Weight: 7}},
		Shared: sharedConfig{Level: "info"},
	}
}

func (c *nodeConfig) Validate() error {
	var errs []error
	var play []error
	if c.Play.MaxLag < time.Second {
		play = append(play, errors.New("max_lag: must be at least 1s"))
	}
	if c.Play.Share > 1 {
		play = append(play, fmt.Errorf("share: must be at most 1, not %v", c.Play.Share))
	}
	errs = append(errs, Prefix("play", errors.Join(play...)))
	for i, t := range c.Tenants {
		if t.Name == "" {
			errs = append(errs, fmt.Errorf("tenants[%d].name: is required", i))
		}
		for _, k := range t.Keys {
			if len(k) < 8 {
				// A careless message, to show that the loader does not let it out.
				errs = append(errs, fmt.Errorf("tenants[%d].keys: %q is too short", i, string(k)))
			}
		}
	}
	for name, h := range c.Hosts {
		if h.Weight < 0 {
			errs = append(errs, fmt.Errorf("hosts.%s.weight: must not be negative", name))
		}
	}
	if c.TLS != nil && c.TLS.Certificate == "" {
		errs = append(errs, fmt.Errorf("tls: %w", errors.New("certificate: is required")))
	}
	return errors.Join(errs...)
}

func TestParseAppliesFileOverDefaults(t *testing.T) {
	t.Setenv("WEIR_TEST_PORT", "8081")
	t.Setenv("WEIR_TEST_KEY", "from-environment")
	file := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, []byte("from file\r\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got := defaultNode()
	defaults := got.Hosts
	err := Parse("node.yaml", []byte(`
role: origin
play:
  max_lag: 300ms1s
  max_log_bytes: 1MiB
  policy: hash
  share: 1e-1
  workers: -128
  port: ${ENV:WEIR_TEST_PORT}
  cors: true
tenants:
  - name: 0123
    keys: [ "${ENV:WEIR_TEST_KEY}", '${FILE:`+file+`}', literal-key ]
  - &second
    name: b
    linger: 1m
    keys: []
  - *second
hosts:
  a.example:
    upstreams: [o1:1935]
  "b.example:8080": {weight: 3}
tls:
  certificate: cert.pem
allow: [10.0.0.0/8, "::1/128"]
log_level: debug
`), &got)
	if err != nil {
		t.Fatal(err)
	}
	second := tenantConfig{Name: "b", Linger: time.Minute, Keys: []Secret{}}
	want := nodeConfig{
		Role: "origin",
		Play: playConfig{1300 * time.Millisecond, units.MiB, "hash", 0.1, -128, 8081, true},
		Tenants: []tenantConfig{
			{"0123", []Secret{"from-environment", "from file", "literal-key"}, 10 * time.Second},
			second, second,
		},
		Peers:  []string{"default:1"},
		Hosts:  map[string]hostConfig{"a.example": {[]string{"o1:1935"}, 7}, "b.example:8080": {Weight: 3}},
		TLS:    &tlsConfig{Certificate: "cert.pem"},
		Allow:  []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("::1/128")},
		Shared: sharedConfig{Level: "debug"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %#v\nwant %#v", got, want)
	}
	if len(defaults) != 1 || defaults["a.example"].Upstreams != nil {
		t.Errorf("the map of the defaults was changed: %v", defaults)
	}
}

func TestEffectiveReadsBack(t *testing.T) {
	want := defaultNode()
	want.Tenants = []tenantConfig{{Name: "12", Linger: time.Minute}}
	want.Play.MaxLag = 90 * time.Minute
	out, err := Effective(want)
	if err != nil {
		t.Fatal(err)
	}
	got := defaultNode()
	got.Play = playConfig{}
	if err := Parse("effective.yaml", out, &got); err != nil {
		t.Fatalf("%v in\n%s", err, out)
	}
	// Empty and absent lists are printed alike.
	want.Tenants[0].Keys, want.Allow = []Secret{}, []netip.Prefix{}
	h := want.Hosts["a.example"]
	h.Upstreams = []string{}
	want.Hosts = map[string]hostConfig{"a.example": h}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %#v\nwant %#v\nfrom\n%s", got, want, out)
	}
}

func TestSecretIsNeverPrinted(t *testing.T) {
	const value = "hunter2hunter2"
	c := nodeConfig{Tenants: []tenantConfig{{Keys: []Secret{value}}}, TLS: &tlsConfig{Key: value}}
	out, err := Effective(c)
	if err != nil {
		t.Fatal(err)
	}
	printed := map[string]string{"Effective": string(out)}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		printed[verb] = fmt.Sprintf(verb, Secret(value)) + fmt.Sprintf(verb, c.Tenants)
	}
	printed["LogValue"] = Secret(value).LogValue().String()
	for how, text := range printed {
		if strings.Contains(text, value) || strings.Contains(text, fmt.Sprintf("%x", value)) || !strings.Contains(text, mask) {
			t.Errorf("%s prints %s", how, text)
		}
	}

	// The printed form must not come back as if it were the secret.
	err = Parse("effective.yaml", out, &nodeConfig{})
	if err == nil || !strings.Contains(err.Error(), "tls.key: is the mask of a printed configuration") {
		t.Errorf("reading a masked configuration: %v", err)
	}
}

func TestParseReportsEverything(t *testing.T) {
	t.Setenv("WEIR_TEST_SECRET", "geheim-wort")
	t.Setenv("WEIR_TEST_EMPTY", "")
	dir := t.TempDir()
	f := func(text string, want ...string) {
		t.Helper()
		c := defaultNode()
		err := Parse("n.yaml", []byte(text), &c)
		if err == nil {
			t.Errorf("no error for\n%s", text)
			return
		}
		var problems Problems
		if !errors.As(err, &problems) {
			t.Errorf("%T is not Problems: %v", err, err)
		}
		if got := err.Error(); got != strings.Join(want, "\n") {
			t.Errorf("for\n%s\ngot\n%s\nwant\n%s", text, got, strings.Join(want, "\n"))
		}
	}

	// Keys.
	f("plya: {}", `n.yaml:1: plya: unknown key; did you mean "play"?`)
	f("role: edge\nplay:\n  max-lag: 1s\n", `n.yaml:3: play.max-lag: unknown key; did you mean "max_lag"?`)
	f("max_log_bytes: 1", `n.yaml:1: max_log_bytes: unknown key; it belongs elsewhere: play.max_log_bytes`)
	f("tls: {zzzzzzzz: 1}", `n.yaml:1: tls.zzzzzzzz: unknown key; known here: certificate, key`,
		`n.yaml:1: tls: certificate: is required`)
	f("role: edge\nlog_level: a\nrole: edge", `n.yaml:3: role: is given twice, first on line 1`)
	f("hosts:\n  x: {}\n  y: {}\n  x: {}", `n.yaml:4: hosts.x: is given twice, first on line 2`)
	f("? [a]\n: 1", `n.yaml:1: a key must be a word, not a list`)
	f("play: &p {}\n<<: *p", `n.yaml:2: merge keys (<<) are not supported; use an alias for a whole value`)
	f("runtime: 1", `n.yaml:1: runtime: unknown key; known here: role, play, peers, tenants, hosts, tls, allow, log_level`)

	// Shapes and values.
	f("- a", `n.yaml:1: must be a section of keys, not a list`)
	f("just text", `n.yaml:1: must be a section of keys, not a single value`)
	f("peers: a", `n.yaml:1: peers: must be a list, not a single value`)
	f("peers:", `n.yaml:1: peers: has no value; write [] for an empty list`)
	f("hosts: [a]", `n.yaml:1: hosts: must be a section of names and values, not a list`)
	f("role: {a: b}", `n.yaml:1: role: must be text, not a section of keys`)
	f("role:", `n.yaml:1: role: has no value`)
	f("role: !!str x", `n.yaml:1: role: YAML tags (!!str) are not supported`)
	f("play: {max_lag: 5}", `n.yaml:1: play.max_lag: "5" is not a duration (a number with a unit: 300ms, 5s, 1h30m)`)
	f("play: {max_log_bytes: 12 parsecs}", `n.yaml:1: play.max_log_bytes: "12 parsecs" is not a size (a whole number with B, KiB, MiB, GiB, kB, MB or GB)`)
	f("play: {policy: hush}", `n.yaml:1: play.policy: "hush" is not round_robin or hash; did you mean "hash"?`)
	f("play: {share: .inf}", `n.yaml:1: play.share: ".inf" is not a number`)
	f("play: {workers: 128}", `n.yaml:1: play.workers: "128" is not a whole number from -128 to 127`)
	f("play: {port: 65536}", `n.yaml:1: play.port: "65536" is not a whole number from 0 to 65535`)
	f("play: {port: '80'}", `n.yaml:1: play.port: must be a whole number from 0 to 65535, not the text "80"`)
	f("play: {cors: yes}", `n.yaml:1: play.cors: "yes" is not true or false`)
	f("allow: [10.0.0.0/33]", `n.yaml:1: allow[0]: netip.ParsePrefix("10.0.0.0/33"): prefix length out of range`)

	// Documents.
	f("", `n.yaml:1: the file is empty`)
	f("# nothing\n", `n.yaml:1: the file is empty`)
	f("---\n~\n", `n.yaml:1: the file is empty`)
	f("role: edge\n---\nrole: edge\n", `n.yaml:2: a second document (---) begins here; a configuration is one document`)
	f("role: [edge\nplay: {}\n", `n.yaml:2: not valid YAML: while parsing a flow sequence: did not find expected ',' or ']' (it begins on line 1)`)
	f("role: *nope", `n.yaml:1: not valid YAML: unknown anchor 'nope' referenced`)
	f("role: edge\n"+strings.Repeat("#", MaxFileSize), `n.yaml:1: the file is larger than 1048576 bytes`)

	// References.
	f("role: ${ENV:WEIR_TEST_MISSING}", `n.yaml:1: role: the environment variable WEIR_TEST_MISSING is not set`)
	f("role: ${ENV:WEIR_TEST_EMPTY}", `n.yaml:1: role: the environment variable WEIR_TEST_EMPTY is empty`)
	f("role: ${FILE:"+dir+"/none}", `n.yaml:1: role: cannot read ${FILE:`+dir+`/none}: no such file or directory`)
	f("role: ${FILE:"+dir+"}", `n.yaml:1: role: cannot read ${FILE:`+dir+`}: not a regular file`)
	f("role: ${FILE:relative}", `n.yaml:1: role: cannot read ${FILE:relative}: the path must be absolute`)
	f("role: a${ENV:HOME}", `n.yaml:1: role: a reference (${ENV:NAME} or ${FILE:/path}) must be the whole value`)
	f("role: ${VAULT:x}", `n.yaml:1: role: unknown reference ${VAULT:x}; use ${ENV:NAME} or ${FILE:/path}`)
	f("play: {port: '${ENV:WEIR_TEST_SECRET}'}", `n.yaml:1: play.port: the value of ${ENV:WEIR_TEST_SECRET} is not a whole number from 0 to 65535`)
	f("play: {max_log_bytes: '${ENV:WEIR_TEST_SECRET}'}", `n.yaml:1: play.max_log_bytes: ${ENV:WEIR_TEST_SECRET} is not a size (a whole number with B, KiB, MiB, GiB, kB, MB or GB)`)
	f("tenants:\n- name: a\n  keys: [abc]", `n.yaml:3: tenants[0].keys: ******** is too short`)

	// Validation finds lines, also of what is not there.
	f("play:\n  port: 1\n  max_lag: 1ms", `n.yaml:3: play.max_lag: must be at least 1s`)
	f("role: edge\nplay: {max_lag: 1ms, share: 2}", `n.yaml:2: play.max_lag: must be at least 1s`, `n.yaml:2: play.share: must be at most 1, not 2`)
	f("role: edge\ntenants:\n- linger: 1s", `n.yaml:3: tenants[0].name: is required`)
	f("hosts:\n  a.b:\n    weight: -1\n", `n.yaml:3: hosts.a.b.weight: must not be negative`)

	f("tls:\n  key: k\n  certificate: ''", `n.yaml:3: tls.certificate: is required`)

	// Everything at once, in line order, and no echo of one problem in another.
	f(`play:
  max_lag: soon
  share: 3
tenants:
  - nam: x
rule: edge
`,
		`n.yaml:2: play.max_lag: "soon" is not a duration (a number with a unit: 300ms, 5s, 1h30m)`,
		`n.yaml:3: play.share: must be at most 1, not 3`,
		`n.yaml:5: tenants[0].nam: unknown key; did you mean "name"?`,
		`n.yaml:5: tenants[0].name: is required`,
		`n.yaml:6: rule: unknown key; did you mean "role"?`)
}

func TestAliasesAreBounded(t *testing.T) {
	type tree struct {
		A [][]string   `yaml:"a"`
		B [][][]string `yaml:"b"`
	}
	parse := func(text string) error { return Parse("n.yaml", []byte(text), &tree{}) }

	if err := parse("a: &x [*x]"); err == nil || !strings.Contains(err.Error(), "contains itself") {
		t.Errorf("an alias inside itself: %v", err)
	}
	words := "&w [" + strings.Repeat("x,", 1000) + "]"
	row := "&r [" + words + strings.Repeat(",*w", 200) + "]"
	bomb := "b: [" + row + strings.Repeat(",*r", 200) + "]"
	if err := parse(bomb); err == nil || !strings.Contains(err.Error(), "expand to more than") {
		t.Errorf("a bomb of aliases: %v", err)
	}
}

func TestParseRefusesUnfitTargets(t *testing.T) {
	f := func(into any, want string) {
		t.Helper()
		if err := Parse("n.yaml", []byte("a: 1"), into); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%T: %v, want %q", into, err, want)
		}
	}
	f(nodeConfig{}, "not a pointer to a struct")
	f((*nodeConfig)(nil), "not a pointer to a struct")
	f(&struct{ A int }{}, "no name in a yaml tag")
	f(&struct {
		A any `yaml:"a"`
	}{}, "cannot hold values of this type")
	f(&struct {
		A map[int]string `yaml:"a"`
	}{}, "must be strings")
	f(&struct {
		A int `yaml:"a"`
		B int `yaml:"a"`
	}{}, `the key "a" twice`)
}

func TestRead(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	f := func(path, want string) {
		t.Helper()
		c := defaultNode()
		if err := Load(path, &c); err == nil || err.Error() != want {
			t.Errorf("Load(%q): %v, want %s", path, err, want)
		}
	}
	f(dir+"/none.yaml", "read configuration "+dir+"/none.yaml: no such file or directory")
	f(dir, "read configuration "+dir+": is a directory")
	big := file("big.yaml", strings.Repeat("#", MaxFileSize+1))
	f(big, "read configuration "+big+": the file is larger than 1048576 bytes")
	empty := file("empty.yaml", "")
	f(empty, empty+":1: the file is empty")

	// A descriptor, as a supervisor hands its configuration to a worker.
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	w.WriteString("role: discovery\n")
	w.Close()
	c := defaultNode()
	if err := Load(fmt.Sprintf("/dev/fd/%d", r.Fd()), &c); err != nil || c.Role != "discovery" {
		t.Errorf("Load of a descriptor: %v, role %q", err, c.Role)
	}
}

func TestRole(t *testing.T) {
	f := func(text, want, wantErr string) {
		t.Helper()
		got, err := RoleOf("n.yaml", []byte(text))
		if got != want || err == nil && wantErr != "" || err != nil && err.Error() != wantErr {
			t.Errorf("RoleOf(%q) = %q, %v; want %q, %q", text, got, err, want, wantErr)
		}
	}
	f("anything: [1]\nrole: edge", "edge", "")
	f("role: 'origin'", "origin", "")
	f("\nrole: egde", "", `n.yaml:2: role: must be edge, origin or discovery, not "egde"`)
	f("role: [edge]", "", `n.yaml:1: role: must be edge, origin or discovery, not a list`)
	f("role:", "", `n.yaml:1: role: must be edge, origin or discovery, not nothing`)
	f("# c\nrolle: edge", "", `n.yaml:2: role: is missing; it must be edge, origin or discovery`)
	f("[]", "", `n.yaml:1: role: is missing; it must be edge, origin or discovery`)
	f("", "", `n.yaml:1: the file is empty`)
	if _, err := Role(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("no error for a missing file")
	}
}

func TestPrefix(t *testing.T) {
	inner := errors.Join(errors.New("a: x"), errors.Join(errors.New("b[0]: y"), errors.New("[1]: z")))
	got := Prefix("p", fmt.Errorf("q.%w", inner)).Error()
	if want := "p.q.a: x\np.q.b[0]: y\np.q.[1]: z"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := Prefix("p", inner).Error(); got != "p.a: x\np.b[0]: y\np[1]: z" {
		t.Errorf("got %q", got)
	}
	if Prefix("p", nil) != nil {
		t.Error("a prefix made an error of nil")
	}
}

// FuzzParse checks that any file either loads or yields problems that name the
// file, and that what loads prints and loads again.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"role: edge\nplay: {max_lag: 1s}", "tenants: [{name: a, keys: ['x']}, &a {name: b}, *a]", "a: &x [*x]",
		"hosts: {a.b: {upstreams: []}}", "? [a]\n: 1", "---\n---\n", "role: ${ENV:PATH}", "tls:\n", "allow: ['::1/128']", "{}",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c := defaultNode()
		if err := Parse("f.yaml", data, &c); err != nil {
			var problems Problems
			if !errors.As(err, &problems) || len(problems) == 0 {
				t.Fatalf("%T: %v", err, err)
			}
			for _, p := range problems {
				if p.File != "f.yaml" || p.Line < 1 || p.Text == "" {
					t.Fatalf("bad problem %+v", p)
				}
			}
			return
		}
		for i := range c.Tenants {
			c.Tenants[i].Keys = nil // they are masked
		}
		if c.TLS != nil {
			c.TLS.Key = ""
		}
		out, err := Effective(c)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(out), "${") {
			return // a literal that would be read as a reference
		}
		again := defaultNode()
		if err := Parse("again.yaml", out, &again); err != nil {
			t.Fatalf("%v\nin\n%s\nfrom\n%s", err, out, data)
		}
	})
}
