package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"weir/internal/chaos"
)

func TestUsage(t *testing.T) {
	f := func(code int, want string, args ...string) {
		t.Helper()
		var out bytes.Buffer
		if got := command(t.Context(), args, &out, &out); got != code || !strings.Contains(out.String(), want) {
			t.Errorf("chaos %v: exit code %d and %q, want %d and %q", args, got, out.String(), code, want)
		}
	}
	f(exitClean, "-keep-going", "-h")
	f(exitUsage, "not defined", "-nonsense")
	f(exitUsage, `"more" is not understood`, "more")
	f(exitUsage, "players: 1 is not between", "-players", "1")
	f(exitUsage, `"fire" is none of`, "-faults", "kill,fire")
	f(exitFailed, "no such file", "-weir", "/nowhere/weir")
	f(exitFailed, "no such file", "-check", "/nowhere/history")
}

func TestCheck(t *testing.T) {
	f := func(code int, want, history string) {
		t.Helper()
		path := filepath.Join(t.TempDir(), "history")
		if err := os.WriteFile(path, []byte(history), 0o600); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if got := command(t.Context(), []string{"-check", path}, &out, &out); got != code || !strings.Contains(out.String(), want) {
			t.Errorf("history %s: exit code %d and %q, want %d and %q", history, got, out.String(), code, want)
		}
	}
	const setup = `{"t":0,"e":"setup","setup":{"streams":{"s":{}},"nodes":{"o":{"role":"origin"}},"bounds":{"MinFrames":MIN}}}` + "\n"
	f(exitClean, "clean", strings.Replace(setup, "MIN", "0", 1))
	f(exitVoid, "void: 0 frames are less than 1", strings.Replace(setup, "MIN", "1", 1))
	f(exitBroken, "BROKEN: nodes-live at 0.005 s", strings.Replace(setup, "MIN", "0", 1)+`{"t":5,"e":"down","node":"o"}`)
	f(exitFailed, "invalid character", "x")
}

// The manual names what there is: rules, faults, flags.
func TestManual(t *testing.T) {
	manual, err := os.ReadFile("../../docs/chaos.md")
	if err != nil {
		t.Fatal(err)
	}
	rules, err := os.ReadFile("../../internal/chaos/model/rules.go")
	if err != nil {
		t.Fatal(err)
	}
	var words []string
	for line := range strings.Lines(string(rules)) {
		if _, value, ok := strings.Cut(line, ` Rule = "`); ok {
			words = append(words, value[:strings.IndexByte(value, '"')])
		}
	}
	words = append(words, chaos.FaultKinds()...)
	var help bytes.Buffer
	command(t.Context(), []string{"-h"}, &help, &help)
	for line := range strings.Lines(help.String()) {
		if flag, ok := strings.CutPrefix(line, "  -"); ok {
			words = append(words, "-"+strings.Fields(flag)[0])
		}
	}
	if len(words) < 35 {
		t.Errorf("only %d words were found", len(words))
	}
	for _, w := range words {
		if !strings.Contains(string(manual), "`"+w+"`") {
			t.Errorf("docs/chaos.md does not name `%s`", w)
		}
	}
}
