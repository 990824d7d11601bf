// Package importrules holds the direction of weir's dependencies as a test.
package importrules

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// allowed says which packages of ours each package of ours may import (outside
// its tests).
//
// ADDING A LINE, OR A WORD TO A LINE, IS A DESIGN DECISION. The directions that
// it has to keep, in one sentence each:
//
//   - media is the leaf that every carrier of media knows; the log (stream)
//     knows media and nothing else.
//   - Parsers (flv, rtmp/chunk, rtmp/amf) know no network and no stream.
//   - discovery never sees media; hls knows packets, not roles, not discovery.
//   - edge and origin are roles: they never know each other, and no library of
//     ours knows a role. What both need is a package below internal/.
//   - Only cmd/weir knows everything.
//
// A line for a package that is gone is an error too.
var allowed = map[string]string{
	"cmd/weir": everything,

	// Roles. They are where the parts meet, so their lines are long; what
	// matters is what they leave out: each other.
	"edge": "configs discovery hls internal/admin internal/admission internal/drain internal/flv internal/httpserver internal/limit internal/load" +
		" internal/media internal/node internal/quiet internal/reload internal/rtmp internal/session internal/stream internal/units internal/upgrade internal/vhost internal/worker",
	"origin": "configs discovery hls internal/admin internal/admission internal/drain internal/flv internal/httpserver internal/limit internal/load" +
		" internal/media internal/node internal/reload internal/rtmp internal/session internal/stream internal/units internal/upgrade internal/vhost",
	"discovery": "configs discovery/schedule internal/quiet internal/repeat internal/units",
	// Decisions alone: nodes come in, a choice goes out.
	"discovery/schedule": "internal/units",
	// Decides about machines; what it needs of the directory is behind an interface of its own.
	"discovery/autoscale": "configs",
	"internal/simulate":   "discovery/autoscale discovery/schedule",
	// Regions from a file of somebody else.
	"discovery/geo": "",
	// Answers to clients: they ask the scheduler behind an interface of theirs.
	"discovery/httpdns": "discovery/schedule internal/limit",
	"discovery/dns":     "discovery/schedule internal/limit",
	// The engine for high availability: a large library, which only cmd knows.
	"discovery/etcd":          "discovery",
	"discovery/etcd/etcdtest": "",          // starts etcd for tests
	"discovery/dirtest":       "discovery", // the tests that all engines pass
	// The discovery server as a node: discovery itself knows no files.
	"internal/discoverynode": "configs discovery discovery/autoscale discovery/dns discovery/geo discovery/httpdns discovery/schedule internal/admin internal/node",

	"hls":         "internal/media internal/units",
	"hls/hlstest": "",
	"configs":     "",

	// Media and its carriers.
	"internal/media":      "",
	"internal/flv":        "internal/media",
	"internal/stream":     "internal/media",
	"internal/fanout":     "internal/flv internal/media internal/rtmp/chunk internal/stream internal/uring",
	"internal/clip":       "",
	"internal/rtmp":       "internal/media internal/rtmp/amf internal/rtmp/chunk internal/units",
	"internal/rtmp/amf":   "",
	"internal/rtmp/chunk": "internal/media",

	// Serving: connections, tenants, processes.
	"internal/session": "configs hls internal/admin internal/bare internal/fanout internal/httpserver internal/limit internal/load internal/media internal/node internal/repeat internal/rtmp" +
		" internal/rtmp/chunk internal/secure internal/stream internal/ticket internal/units internal/vhost",
	"internal/httpserver":        "internal/bare internal/limit internal/secure internal/units",
	"internal/secure":            "internal/node internal/repeat", // node checks addresses
	"internal/secure/securetest": "",
	"internal/limit":             "",
	"internal/vhost":             "configs hls", // a tenant is configured as a whole
	"internal/worker":            "internal/quiet",
	// Of discovery it knows what an operator can do to a stream of the cluster.
	"internal/admin":     "configs discovery internal/drain internal/load internal/node internal/reload internal/upgrade",
	"internal/reload":    "", // gets what it applies as functions
	"internal/upgrade":   "", // gets what it does as a function
	"internal/drain":     "", // paces what it knows only by interfaces
	"internal/load":      "internal/quiet internal/units",
	"internal/admission": "discovery internal/load internal/session internal/ticket",
	"internal/ticket":    "",
	"internal/node":      "",
	"internal/units":     "",
	"internal/quiet":     "",
	"internal/uring":     "",
	"internal/bare":      "",
	"internal/repeat":    "",

	// The load tool meets servers only over the network.
	"internal/bench": "internal/clip internal/flv internal/media internal/rtmp internal/rtmp/amf internal/uring",

	// The chaos checker meets nodes only over the network. Its model and its wire
	// know nothing of weir.
	"internal/chaos":        "internal/chaos/model internal/chaos/wire internal/clip internal/flv internal/media internal/rtmp internal/rtmp/amf",
	"internal/chaos/model":  "",
	"internal/chaos/wire":   "",
	"internal/chaos/broken": "",
	"scripts/chaos":         "internal/chaos internal/chaos/model",

	// Tests without a package of their own.
	"internal/importrules": "",
	"e2e":                  "",

	// Writes the reference of all configuration keys.
	"scripts/confdoc":  "edge internal/confdoc internal/discoverynode origin",
	"internal/confdoc": "configs",

	// Writes the page of figures of scripts/bench.sh.
	"scripts/benchtable": "internal/bench",
}

// everything is the line of the one package that may import all others.
const everything = "*"

// expected names packages of the design whose line may be there before they are.
const expected = "cmd/weir origin scripts/confdoc"

// never names pairs of which the first must not import the second in its tests
// either: a test that needs both is an end-to-end test.
var never = [][2]string{
	{"edge", "origin"},
	{"origin", "edge"},
	{"discovery", "internal/stream"},
	{"discovery", "internal/media"},
	{"discovery", "internal/rtmp"},
	{"discovery", "hls"},
	{"hls", "edge"},
	{"hls", "origin"},
	{"hls", "discovery"},
	{"internal/stream", "internal/rtmp"},
	{"internal/stream", "internal/session"},
}

// pure packages do their work on bytes and readers: neither they nor what they
// import of ours may reach for the network, files or the operating system, and
// so they can be fuzzed, benchmarked and reused anywhere.
var pure = []string{"internal/media", "internal/flv", "internal/stream", "internal/rtmp/amf", "internal/rtmp/chunk", "internal/units", "internal/chaos/model"}

// impure are the imports that a pure package must not have, with all below them.
var impure = []string{"net", "os", "syscall", "crypto/tls", "golang.org/x/sys", "golang.org/x/net", "github.com/valyala/fasthttp"}

type goPackage struct {
	ImportPath   string
	Name         string
	Imports      []string
	TestImports  []string
	XTestImports []string
}

// ours returns the packages of this module by their path below it.
func ours(t *testing.T) map[string]goPackage {
	t.Helper()
	// With -e, because a package that does not build is another test's failure.
	cmd := exec.Command("go", "list", "-e", "-json=ImportPath,Name,Imports,TestImports,XTestImports", module+"...")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v: %s", err, stderr.String())
	}
	packages := make(map[string]goPackage)
	d := json.NewDecoder(strings.NewReader(string(out)))
	for {
		var p goPackage
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("decode output of go list: %v", err)
		}
		packages[strings.TrimPrefix(p.ImportPath, module)] = p
	}
	if len(packages) < 5 {
		t.Fatalf("go list shows %d packages: is the pattern still right?", len(packages))
	}
	return packages
}

const module = "weir/"

// internalOnly keeps the imports of ours, without the module's name.
func internalOnly(imports []string) []string {
	var names []string
	for _, i := range imports {
		if name, ok := strings.CutPrefix(i, module); ok {
			names = append(names, name)
		}
	}
	return names
}

// violations checks packages against a map of allowed imports.
func violations(packages map[string]goPackage, allowed map[string]string) []string {
	var wrong []string
	for name, p := range packages {
		line, ok := allowed[name]
		if !ok {
			wrong = append(wrong, name+" has no line in the import rules")
			continue
		}
		if line == everything {
			continue
		}
		may := strings.Fields(line)
		for _, i := range internalOnly(p.Imports) {
			if !slices.Contains(may, i) {
				wrong = append(wrong, name+" imports "+i+", which the import rules do not allow")
			}
		}
	}
	slices.Sort(wrong)
	return wrong
}

func TestImportsAreAllowed(t *testing.T) {
	for _, w := range violations(ours(t), allowed) {
		t.Error(w)
	}
}

func TestLinesAreOfPackagesThatExist(t *testing.T) {
	packages := ours(t)
	for name, line := range allowed {
		if _, ok := packages[name]; !ok && !slices.Contains(strings.Fields(expected), name) {
			t.Errorf("the import rules have a line for %s, which does not exist", name)
		}
		if line == everything && name != "cmd/weir" {
			t.Errorf("%s may import everything: only cmd/weir may", name)
		}
		for _, i := range strings.Fields(line) {
			if _, ok := allowed[i]; i != everything && !ok {
				t.Errorf("%s may import %s, which has no line itself", name, i)
			}
		}
	}
}

func TestStrangersDoNotMeet(t *testing.T) {
	packages := ours(t)
	for _, pair := range never {
		p := packages[pair[0]]
		if slices.Contains(internalOnly(slices.Concat(p.Imports, p.TestImports, p.XTestImports)), pair[1]) {
			t.Errorf("%s imports %s: it must not, not even in tests", pair[0], pair[1])
		}
	}
}

func TestNobodyImportsCommands(t *testing.T) {
	packages := ours(t)
	for name, p := range packages {
		for _, i := range internalOnly(p.Imports) {
			if packages[i].Name == "main" {
				t.Errorf("%s imports the command %s", name, i)
			}
		}
	}
}

func TestPurePackagesDoNoIO(t *testing.T) {
	packages := ours(t)
	for _, name := range pure {
		p, ok := packages[name]
		if !ok {
			t.Errorf("no package %s", name)
			continue
		}
		for _, i := range p.Imports {
			for _, root := range impure {
				if i == root || strings.HasPrefix(i, root+"/") {
					t.Errorf("%s imports %s: it must work on bytes alone", name, i)
				}
			}
		}
		for _, i := range internalOnly(p.Imports) {
			if !slices.Contains(pure, i) {
				t.Errorf("%s imports %s, which is not pure", name, i)
			}
		}
	}
}

// The rules themselves have to be able to fail.
func TestViolationsAreSeen(t *testing.T) {
	rules := map[string]string{"edge": "internal/media", "origin": "", "cmd/weir": everything, "internal/media": ""}
	f := func(name string, imports []string, want string) {
		t.Helper()
		got := strings.Join(violations(map[string]goPackage{name: {Imports: imports}}, rules), "\n")
		if got != want {
			t.Errorf("%s importing %v:\n%s\nwant\n%s", name, imports, got, want)
		}
	}
	f("edge", []string{"net", "weir/internal/media"}, "")
	f("edge", []string{"weir/origin", "weir/internal/media"}, "edge imports origin, which the import rules do not allow")
	f("cmd/weir", []string{"weir/edge", "weir/origin"}, "")
	f("internal/new", nil, "internal/new has no line in the import rules")
}
