package confdoc

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"weir/configs"
	"weir/internal/httpserver"
	"weir/internal/limit"
	"weir/internal/units"
)

const module = "../.."

type sampleConfig struct {
	// What this node is called.
	Name string `yaml:"name"`
	// How long
	// it waits | at most.
	Wait time.Duration `yaml:"wait"`
	Size units.Bytes   `yaml:"size"` // A comment behind the field counts too.
	// Who may come.
	Allow []netip.Prefix `yaml:"allow"`
	// A word.
	Key configs.Secret `yaml:"key"`
	// Which way.
	Way way `yaml:"way"`
	// Maybe a number.
	Limit *int `yaml:"limit"`
	// Names of names.
	Labels map[string]string `yaml:"labels"`
	// The inner part.
	Inner innerConfig `yaml:"inner"`
	// All tenants.
	Tenants []tenantConfig `yaml:"tenants"`
	// All hosts.
	Hosts map[string]*tenantConfig `yaml:"hosts"`
	// Perhaps another.
	Other  *tenantConfig `yaml:"other"`
	Shared sharedConfig  `yaml:",inline"`
}

type innerConfig struct {
	// On turns it on, unless OffAfter has passed.
	On bool `yaml:"on"`
	// OffAfter is when it goes off; see WebSocket.
	OffAfter time.Duration `yaml:"off_after"`
}

type tenantConfig struct {
	// How much.
	Weight float64 `yaml:"weight"`
}

func (t *tenantConfig) SetDefaults() { t.Weight = 1.5 }

type sharedConfig struct {
	// Level is how loud it is.
	Level string `yaml:"level"`
}

type way string

func (way) Choices() []string { return []string{"left", "right"} }

func TestGenerate(t *testing.T) {
	got, err := Generate(module, "# Reference\n", []Root{{
		Title: "A node", Intro: "Says hello.", Sample: "configs/node.yaml",
		Default: &sampleConfig{
			Wait: time.Hour, Size: 64 * units.KiB, Key: "geheim", Way: "left",
			Allow: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, Labels: map[string]string{"b": "2", "a": "1"},
			Shared: sharedConfig{Level: "info"},
		},
	}})
	if err != nil {
		t.Fatal(err)
	}
	want := strings.ReplaceAll(`# Reference

## A node

Says hello.

Sample: ['configs/node.yaml'](../configs/node.yaml)

| key | type | default | meaning |
|---|---|---|---|
| 'name' | text | empty | What this node is called. |
| 'wait' | duration | '1h' | How long it waits \| at most. |
| 'size' | size | '64KiB' | A comment behind the field counts too. |
| 'allow' | list of networks | '[10.0.0.0/8]' | Who may come. |
| 'key' | secret | '********' | A word. |
| 'way' | 'left', 'right' | 'left' | Which way. |
| 'limit' | whole number | none | Maybe a number. |
| 'labels' | names with text | '{a: 1, b: 2}' | Names of names. |
| 'level' | text | 'info' | How loud it is. |

### 'inner'

The inner part.

| key | type | default | meaning |
|---|---|---|---|
| 'inner.on' | true or false | 'false' | 'on' turns it on, unless 'off_after' has passed. |
| 'inner.off_after' | duration | '0s' | When it goes off; see WebSocket. |

### 'tenants[]'

All tenants. A list of sections, one for each '-'.

| key | type | default | meaning |
|---|---|---|---|
| 'tenants[].weight' | number | '1.5' | How much. |

### 'hosts.NAME'

All hosts. A section for each NAME.

| key | type | default | meaning |
|---|---|---|---|
| 'hosts.NAME.weight' | number | '1.5' | How much. |

### 'other'

Perhaps another. Absent by default; the defaults below hold if the section is there.

| key | type | default | meaning |
|---|---|---|---|
| 'other.weight' | number | '1.5' | How much. |
`, "'", "`")
	if string(got) != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

type undocumented struct {
	A int `yaml:"a"`
	// Documented, but unreachable from a file.
	B int
}

type half struct {
	A int `yaml:"a"`
	// Fine.
	B int `yaml:"b"`
	C int `yaml:"c"`
}

type endless struct {
	// Itself.
	Next *endless `yaml:"next"`
}

func TestGenerateRefuses(t *testing.T) {
	f := func(def any, wants ...string) {
		t.Helper()
		_, err := Generate(module, "", []Root{{Title: "T", Default: def}})
		for _, want := range wants {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%T: %v, want %q", def, err, want)
			}
		}
	}
	f(undocumented{}, "confdoc.undocumented.B has no name in a yaml tag")
	f(half{}, "confdoc.half.A (a): has no doc comment", "confdoc.half.C (c): has no doc comment")
	f(struct {
		A int `yaml:"a"`
	}{}, "the type has no name")
	f(endless{}, "nested too deeply")
	f(3, "not a struct")
	if _, err := Generate(t.TempDir(), "", nil); err == nil {
		t.Error("no error without a go.mod")
	}
}

// The configurations that players' connections are ruled by are documented.
func TestOwnConfigs(t *testing.T) {
	_, err := Generate(module, "# Reference", []Root{
		{Title: "Limits", Default: limit.DefaultConfig()},
		{Title: "HTTP", Default: httpserver.DefaultConfig()},
	})
	if err != nil {
		t.Error(err)
	}
}

// recorder is a testing.TB that keeps what Check has to say.
type recorder struct {
	testing.TB
	text string
}

func (r *recorder) Helper()                        {}
func (r *recorder) Errorf(format string, a ...any) { r.text += fmt.Sprintf(format, a...) }

func TestCheck(t *testing.T) {
	file := filepath.Join(t.TempDir(), "reference.md")
	check := func() string {
		r := &recorder{}
		Check(r, file, []byte("one\ntwo\nthree\n"), "make reference")
		return r.text
	}
	if text := check(); !strings.Contains(text, "cannot be read") || !strings.Contains(text, "make reference") {
		t.Errorf("without a file: %q", text)
	}
	f := func(content, want string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if text := check(); want == "" && text != "" || !strings.Contains(text, want) {
			t.Errorf("%q: %q, want %q", content, text, want)
		}
	}
	f("one\ntwo\nthree\n", "")
	f("one\n2\nthree\n", "out of date; run: make reference\nfirst difference, line 2:\n  file:   2\n  source: two")
	f("one\ntwo\nthree\nfour\n", "line 4")
	f("one", "line 2:\n  file:   (end of file)")
}
