package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
	"go.yaml.in/yaml/v4"

	"weir/configs"
	"weir/internal/fanout"
	"weir/internal/secure/securetest"
	"weir/internal/session"
)

// The tests of all documents are here because only this package knows the commands
// and the configuration of every role.

const root = "../.."

// document is one Markdown file.
type document struct {
	path   string // from the module's root
	text   string // without its fenced blocks
	blocks []block
}

// block is a fenced block.
type block struct {
	language, text string
	line           int
}

// documents returns README.md, CHANGELOG.md and everything below docs.
func documents(t *testing.T) []document {
	t.Helper()
	paths := []string{"README.md", "CHANGELOG.md"}
	err := filepath.WalkDir(root+"/docs", func(path string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() && filepath.Ext(path) == ".md" {
			paths = append(paths, strings.TrimPrefix(path, root+"/"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(paths) < 12 {
		t.Fatalf("only %d documents: %v", len(paths), paths)
	}
	docs := make([]document, len(paths))
	for i, path := range paths {
		docs[i] = parseDocument(t, path, readFile(t, filepath.Join(root, path)))
	}
	return docs
}

func parseDocument(t *testing.T, path, text string) document {
	t.Helper()
	d := document{path: path}
	var plain strings.Builder
	var open *block
	for i, line := range strings.SplitAfter(text, "\n") {
		mark, isFence := strings.CutPrefix(strings.TrimSpace(line), "```")
		switch {
		case isFence && open == nil:
			d.blocks = append(d.blocks, block{language: mark, line: i + 1})
			open = &d.blocks[len(d.blocks)-1]
		case isFence:
			open = nil
		case open != nil:
			open.text += line
		default:
			plain.WriteString(line)
		}
	}
	if open != nil {
		t.Errorf("%s:%d: the block has no end", path, open.line)
	}
	d.text = plain.String()
	return d
}

// docNamed returns one document.
func docNamed(t *testing.T, path string) document {
	t.Helper()
	return parseDocument(t, path, readFile(t, filepath.Join(root, path)))
}

var link = regexp.MustCompile(`\]\(([^)\s]+)\)`)

// Every relative link leads to a file, and to a heading in it.
func TestLinksOfDocuments(t *testing.T) {
	headings := map[string]map[string]bool{}
	docs := documents(t)
	for _, d := range docs {
		headings[d.path] = anchors(d.text)
	}
	links := 0
	for _, d := range docs {
		for _, m := range link.FindAllStringSubmatch(d.text, -1) {
			target, anchor, _ := strings.Cut(m[1], "#")
			if strings.Contains(target, "://") {
				continue
			}
			links++
			path := d.path
			if target != "" {
				path = filepath.ToSlash(filepath.Join(filepath.Dir(d.path), target))
			}
			if _, err := os.Stat(filepath.Join(root, path)); err != nil {
				t.Errorf("%s: link to %s, which does not exist", d.path, m[1])
			} else if anchor != "" && !headings[path][anchor] {
				t.Errorf("%s: link to %s, which has no such heading", d.path, m[1])
			}
		}
	}
	if links < 30 {
		t.Errorf("only %d links found", links)
	}
}

var notInAnchor = regexp.MustCompile(`[^\p{L}\p{N}_ -]`)

// anchors returns the names under which headings can be linked to, as GitHub makes
// them.
func anchors(text string) map[string]bool {
	seen := map[string]bool{}
	for line := range strings.SplitSeq(text, "\n") {
		if title := strings.TrimLeft(line, "#"); title != line && strings.HasPrefix(title, " ") {
			name := notInAnchor.ReplaceAllString(strings.ToLower(strings.TrimSpace(title)), "")
			seen[strings.ReplaceAll(name, " ", "-")] = true
		}
	}
	return seen
}

// Documents name no place of the machine that they were written on.
func TestDocumentsHaveNoPlacesOfAMachine(t *testing.T) {
	places := regexp.MustCompile(`(/home/|/root/|/work/|/tmp/|/Users/)\S*`)
	for _, d := range documents(t) {
		if m := places.FindString(readFile(t, filepath.Join(root, d.path))); m != "" {
			t.Errorf("%s names %s", d.path, m)
		}
	}
}

// The README names exactly two commands for a fresh machine, and make has them.
func TestCommandsForAFreshMachine(t *testing.T) {
	makefile := readFile(t, root+"/Makefile")
	isTarget := func(name string) bool {
		return regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(name) + `:`).MatchString(makefile)
	}
	readme := docNamed(t, "README.md")
	if len(readme.blocks) == 0 {
		t.Fatal("README.md has no blocks")
	}
	var first []string
	for line := range strings.Lines(readme.blocks[0].text) {
		command, _, _ := strings.Cut(line, "#")
		first = append(first, strings.TrimSpace(command))
	}
	if want := []string{"make run", "make test"}; !slices.Equal(first, want) {
		t.Errorf("the first block of README.md is %q, want %q", first, want)
	}
	made := regexp.MustCompile("(?:^|`|\\s)make ([a-z][a-z-]*)")
	for _, d := range documents(t) {
		text := strings.Join(regexp.MustCompile("`[^`\n]+`").FindAllString(d.text, -1), "\n")
		for _, b := range d.blocks {
			text += "\n" + b.text
		}
		for _, m := range made.FindAllStringSubmatch(text, -1) {
			if !isTarget(m[1]) {
				t.Errorf("%s: make %s is no target of the Makefile", d.path, m[1])
			}
		}
	}
}

// Every `weir ...` in a block of shell commands names a command and flags that
// exist, and as many arguments as it takes.
func TestCommandsInDocuments(t *testing.T) {
	commands := 0
	for _, d := range documents(t) {
		for _, b := range d.blocks {
			if b.language != "sh" && b.language != "console" {
				continue
			}
			for line := range strings.Lines(strings.ReplaceAll(b.text, "\\\n", " ")) {
				line, _, _ = strings.Cut(line, " #")
				words := strings.Fields(strings.TrimPrefix(strings.TrimSpace(line), "$ "))
				if len(words) == 0 || filepath.Base(words[0]) != "weir" {
					continue
				}
				commands++
				if err := tryCommand(words[1:]); err != nil {
					t.Errorf("%s:%d: %q: %v", d.path, b.line, strings.TrimSpace(line), err)
				}
			}
		}
	}
	if commands < 15 {
		t.Errorf("only %d commands found", commands)
	}
}

// tryCommand parses a command line as the program does, without doing anything.
func tryCommand(words []string) error {
	for i, w := range words {
		words[i] = strings.Trim(w, `"'`)
	}
	app := newApp(nil, nil, io.Discard, io.Discard)
	for _, c := range app.Commands {
		takes := map[string]int{"push": 2, "pull": 1, "kick": 1}[c.Name]
		if c.Name == "check" {
			takes = -1
		}
		c.Action = func(ctx *cli.Context) error {
			if takes < 0 || takes == 0 && !ctx.Args().Present() {
				return nil
			}
			_, err := arguments(ctx, takes)
			return err
		}
	}
	for _, w := range words {
		if w == "COMMAND" { // stands for any
			return nil
		}
	}
	return app.Run(append([]string{"weir"}, words...))
}

// Every block of YAML is a whole configuration, or a part of one: its keys are
// those of some role.
func TestYAMLInDocuments(t *testing.T) {
	// Certificates are read: those of the documents are made for the test.
	files := securetest.New(t)
	made := strings.NewReplacer("/etc/weir/fullchain.pem", files.Cert, "/etc/weir/key.pem", files.Key)
	for _, d := range documents(t) {
		for _, b := range d.blocks {
			if b.language != "yaml" {
				continue
			}
			var keys map[string]any
			if err := yaml.Unmarshal([]byte(b.text), &keys); err != nil {
				t.Errorf("%s:%d: %v", d.path, b.line, err)
				continue
			}
			roles := configs.Roles()
			if role, ok := keys["role"].(string); ok {
				roles = []string{role}
			}
			var wrong []error
			for _, role := range roles {
				text := made.Replace(b.text)
				if keys["role"] == nil {
					text = "role: " + role + "\n" + text
				}
				err := configs.Parse(d.path, []byte(text), defaultsOf(role))
				if err == nil {
					wrong = nil
					break
				}
				wrong = append(wrong, err)
			}
			for _, err := range wrong {
				t.Errorf("%s:%d: no role takes it: %v", d.path, b.line, err)
			}
		}
	}
}

var flagRow = regexp.MustCompile("(?m)^\\| `--([a-z0-9-]+)[^`]*`(?:, `-(\\w)`)? \\| (?:`([^`]*)`)? ?\\|")

// docs/cli.md has every command with every flag and its default, and no other. A
// command may have a page of its own, docs/COMMAND.md, instead of a section. A flag
// is a row of a table: | `--flag VALUE`, `-f` | `default` | meaning |; the default's
// cell is empty for switches and for none.
func TestFlagsInDocument(t *testing.T) {
	sections := map[string]string{"": ""} // command → text; "" is what holds for all
	current := []string{""}
	for line := range strings.Lines(docNamed(t, "docs/cli.md").text) {
		if title, ok := strings.CutPrefix(line, "## "); ok {
			current = nil
			for part := range strings.SplitSeq(strings.TrimSpace(title), ", ") {
				if name, ok := strings.CutPrefix(part, "weir "); ok {
					current = append(current, name)
				}
			}
		}
		for _, name := range current {
			sections[name] += line
		}
	}
	app := newApp(nil, nil, io.Discard, io.Discard)
	want := map[string][]cli.Flag{"": append(slices.Clone(app.Flags), cli.HelpFlag)}
	for _, c := range app.Commands {
		if !c.Hidden {
			want[c.Name] = c.Flags
		}
	}
	docs := documents(t)
	for command := range want {
		if _, ok := sections[command]; ok {
			continue
		}
		if i := slices.IndexFunc(docs, func(d document) bool { return d.path == "docs/"+command+".md" }); i >= 0 {
			sections[command] = docs[i].text
		}
	}
	if got, want := slices.Sorted(maps.Keys(sections)), slices.Sorted(maps.Keys(want)); !slices.Equal(got, want) {
		t.Errorf("the document has the commands %q, the program %q", got, want)
	}
	for command, flags := range want {
		if _, ok := sections[command]; !ok {
			continue // said above
		}
		documented := map[string]string{}
		for _, m := range flagRow.FindAllStringSubmatch(sections[command], -1) {
			documented[m[1]] = m[3]
			if m[2] != "" {
				documented[m[2]] = m[3]
			}
		}
		for _, f := range flags {
			value := ""
			if v, ok := f.(cli.DocGenerationFlag); ok && f.Names()[0] != "help" {
				value = strings.Trim(v.GetValue(), `"`)
			}
			for _, name := range f.Names() {
				have, ok := documented[name]
				delete(documented, name)
				if !ok {
					t.Errorf("weir %s: flag %s is not in the document", command, name)
				} else if have != value {
					t.Errorf("weir %s: the default of %s is %q, the document says %q", command, name, value, have)
				}
			}
		}
		for name := range documented {
			t.Errorf("weir %s: the document has the flag %s, the program does not", command, name)
		}
	}
}

// docs/cli.md lists the exit codes.
func TestExitCodesInDocument(t *testing.T) {
	text := docNamed(t, "docs/cli.md").text
	for _, code := range []int{0, exitFailed, exitUsage, exitConnect, exitRefused, exitLost} {
		if !strings.Contains(text, "\n| "+strconv.Itoa(code)+" | ") {
			t.Errorf("exit code %d is not in the document", code)
		}
	}
	if n := len(regexp.MustCompile(`(?m)^\| \d+ \| `).FindAllString(text, -1)); n != 6 {
		t.Errorf("the document has %d exit codes, want 6", n)
	}
}

// docs/operations.md explains the reasons of ends and refusals.
func TestReasonsInDocument(t *testing.T) {
	text := docNamed(t, "docs/operations.md").text
	reasons := []string{session.Unpublished}
	for _, r := range []fanout.Reason{fanout.Ended, fanout.Left, fanout.TooSlow, fanout.Kicked, fanout.Shutdown, fanout.Failed, fanout.Moved, fanout.Overload, fanout.Drained} {
		reasons = append(reasons, string(r))
	}
	for _, c := range []session.Code{session.Conflict, session.Denied, session.Banned, session.BadRequest, session.Limit, session.Unavailable, session.Stopping, session.Draining, session.Overload} {
		reasons = append(reasons, string(c))
	}
	for _, r := range reasons {
		if !strings.Contains(text, "\n| `"+r+"` | ") {
			t.Errorf("reason %s is not in the document", r)
		}
	}
}

// The first ADR has every direct dependency with its version.
func TestDependenciesInDocument(t *testing.T) {
	text := docNamed(t, "docs/adr/0001-libraries.md").text
	direct, _, _ := strings.Cut(readFile(t, root+"/go.mod"), "\n)")
	modules := regexp.MustCompile(`(?m)^\t(\S+ v\S+)$`).FindAllStringSubmatch(direct, -1)
	if len(modules) < 10 {
		t.Fatalf("only %d dependencies found", len(modules))
	}
	for _, m := range modules {
		if !strings.Contains(text, "\n| "+m[1]+" | ") {
			t.Errorf("%s is not in the document", m[1])
		}
	}
	if n := strings.Count(text, "\n| g") + strings.Count(text, "\n| p"); n != len(modules) {
		t.Errorf("the document has %d dependencies, go.mod %d", n, len(modules))
	}
}

// metricRow is a line of the table of metrics: name, type, labels.
var metricRow = regexp.MustCompile("(?m)^\\| `(weir_[a-z0-9_]+)` \\| (counter|gauge|histogram) \\| ([a-z, ]*)\\|")

// documentedMetrics returns the labels of each metric, sorted.
func documentedMetrics(t *testing.T) map[string][]string {
	t.Helper()
	metrics := map[string][]string{}
	for _, m := range metricRow.FindAllStringSubmatch(docNamed(t, "docs/operations.md").text, -1) {
		labels := strings.FieldsFunc(m[3], func(r rune) bool { return r == ',' || r == ' ' })
		slices.Sort(labels)
		metrics[m[1]] = labels
	}
	return metrics
}

// sourceTexts returns the string literals of the nodes' source.
func sourceTexts(t *testing.T) []string {
	t.Helper()
	var texts []string
	for _, dir := range []string{"edge", "origin", "discovery", "hls", "internal"} {
		err := filepath.WalkDir(root+"/"+dir, func(path string, entry fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return err
			case entry.IsDir() && (entry.Name() == "testdata" || entry.Name() == "bench"):
				return fs.SkipDir
			case filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go"):
				return nil
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			ast.Inspect(file, func(n ast.Node) bool {
				if l, ok := n.(*ast.BasicLit); ok && l.Kind == token.STRING {
					if text, err := strconv.Unquote(l.Value); err == nil {
						texts = append(texts, text)
					}
				}
				return true
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return texts
}

// docs/operations.md has every metric that the source names, and no other.
func TestMetricsInDocument(t *testing.T) {
	documented := documentedMetrics(t)
	inSource := map[string]bool{}
	name := regexp.MustCompile(`^weir_[a-z0-9_]*[a-z0-9]\b`)
	for _, text := range sourceTexts(t) {
		if m := name.FindString(text); m != "" {
			inSource[m] = true
		}
	}
	for m := range inSource {
		if _, ok := documented[m]; !ok {
			t.Errorf("metric %s is not in the document", m)
		}
	}
	for m := range documented {
		if !inSource[m] {
			t.Errorf("the document has the metric %s, the source does not", m)
		}
	}
	if len(inSource) < 30 {
		t.Errorf("only %d metrics found", len(inSource))
	}
}

// The log lines that docs/operations.md explains exist. One that is given with
// "..." at its end is the begin of a line.
func TestLogLinesInDocument(t *testing.T) {
	_, table, _ := strings.Cut(docNamed(t, "docs/operations.md").text, "\n### Other lines\n")
	table, _, _ = strings.Cut(table, "\n## ")
	texts := sourceTexts(t)
	lines := 0
	for row := range strings.Lines(table) {
		first, _, _ := strings.Cut(strings.TrimPrefix(row, "| "), " | ")
		for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(first, -1) {
			lines++
			begin, open := strings.CutSuffix(m[1], " ...")
			if !slices.ContainsFunc(texts, func(s string) bool { return s == begin || open && strings.HasPrefix(s, begin) }) {
				t.Errorf("no node logs %q", m[1])
			}
		}
	}
	if lines < 20 {
		t.Errorf("only %d lines found", lines)
	}
}
