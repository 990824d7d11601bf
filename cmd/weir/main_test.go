package main

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"
)

// weir runs a command line as main does.
func weir(args ...string) (code int, stdout, stderr string) {
	var out, errOut bytes.Buffer
	code = run(append([]string{"weir"}, args...), &out, &errOut)
	return code, out.String(), errOut.String()
}

// A mistake in the command line is one line on standard error and exit code 2,
// whichever command it is made at.
func TestUsageErrors(t *testing.T) {
	sample := filepath.Join(samplesDir, "edge.yaml")
	f := func(want string, args ...string) {
		t.Helper()
		code, stdout, stderr := weir(args...)
		if code != exitUsage || stdout != "" || strings.Count(stderr, "\n") != 1 || !strings.HasPrefix(stderr, "weir: ") || !strings.Contains(stderr, want) {
			t.Errorf("weir %s: exit code %d, want %d and one line with %q\nstdout: %s\nstderr: %s",
				strings.Join(args, " "), code, exitUsage, want, stdout, stderr)
		}
	}
	for _, c := range newApp(nil, nil, nil, nil).Commands {
		f("weir "+c.Name+" --help", c.Name, "--foo")
	}
	f("weir --help", "--foo")
	f("weir --help", "nonsense")
	f("argument: -c", "edge", "-c")
	f(`"1x"`, "pull", "--duration", "1x", "rtmp://127.0.0.1/live/x")
	f("1x", "pull", "rtmp://127.0.0.1/live/x", "--duration", "1x")
	f("--foo", "pull", "rtmp://127.0.0.1/live/x", "--foo")
	f("want 1 argument, got none", "pull")
	f("want 2 arguments, got 1", "push", "x.flv")
	f("want 1 argument, got 2", "pull", "a", "b")
	f("--publish", "bench")
	f("--url", "bench", "--publish", "rtmp://127.0.0.1/live")
	f("no file", "check")
	f(`"extra"`, "check", "-c", sample, "extra")
	f(`"extra"`, "check", sample, "extra")
	f(`"extra"`, "version", "extra")
	f(`"help"`, "edge", "help")
	f(`"extra"`, "cluster", "extra")
	for _, host := range []string{"a b", "0.0.0.0", "host:1935", "rtmp://host"} {
		f("--advertise: ", "cluster", "--advertise", host)
	}
}

// Help is asked for with --help only, at every command.
func TestHelp(t *testing.T) {
	for _, c := range newApp(nil, nil, nil, nil).Commands {
		code, stdout, stderr := weir(c.Name, "--help")
		if code != 0 || stderr != "" || !strings.Contains(stdout, "weir "+c.Name) || strings.Contains(stdout, "help, h ") {
			t.Errorf("weir %s --help: exit code %d\n%s%s", c.Name, code, stdout, stderr)
		}
	}
	if code, stdout, _ := weir("check", filepath.Join(samplesDir, "edge.yaml")); code != 0 || !strings.Contains(stdout, "is good") {
		t.Errorf("weir check FILE: exit code %d\n%s", code, stdout)
	}
}
