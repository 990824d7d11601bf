package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Mistakes that would only show when a node starts, or never, are found by the check,
// with the line that they are in.
func TestCheckFinds(t *testing.T) {
	f := func(text, want string) {
		t.Helper()
		file := filepath.Join(t.TempDir(), "node.yaml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		code, stdout, stderr := weir("check", "-c", file)
		if want == "" && code == 0 {
			return
		}
		if code != exitUsage || stdout != "" || stderr != "weir: "+file+":"+want+"\n" {
			t.Errorf("%s\nexit code %d\n%s%swant %s", text, code, stdout, stderr, want)
		}
	}
	for _, role := range []string{"edge", "origin"} {
		f("role: "+role+"\nrtmp:\n  listen: 0.0.0.0:1935\nhttp:\n  listen: 127.0.0.1:1935\n",
			"5: http.listen: 127.0.0.1:1935 is taken by rtmp.listen (0.0.0.0:1935)")
		f("role: "+role+"\nadmin:\n  listen: :8080\n",
			"3: admin.listen: :8080 is taken by http.listen (127.0.0.1:8080)")
		f("role: "+role+"\nadmin:\n  listen: myhost:80\n", `3: admin.listen: "myhost" is not an IP address to listen on`)
		f("role: "+role+"\nadmin:\n  listen: \"\"\n", "")
		f("role: "+role+"\nlimits:\n  exempt: [10.0.0.1, 10.0.0.0/8, ::1]\n", "")
		f("role: "+role+"\nlimits:\n  exempt:\n    - ten\n",
			`4: limits.exempt[0]: "ten" is neither an address (10.0.0.7) nor a network (10.0.0.0/8)`)
	}
	itself := "rtmp:\n  listen: :1935\nvhosts:\n  a.example:\n    upstreams:\n      - rtmp://10.0.0.11:1935\n      - rtmp://127.0.0.1:1935\n"
	f("role: edge\n"+itself, "8: vhosts.a.example.upstreams[1]: rtmp://127.0.0.1:1935 is this edge itself, by rtmp.listen (:1935)")
	f("role: origin\n"+itself, "") // origins do not use them
	f("role: discovery\nadmin:\n  listen: myhost:80\n", `3: admin.listen: "myhost" is not an IP address to listen on`)
	f("role: edge\npull:\n  connect_timeout: 0s\n", "3: pull.connect_timeout: 0s is not between 50ms and 1m")
	f("role: edge\npull:\n  resolve_ttl: 1m30s\n  linger: 25h\n", "4: pull.linger: 25h is not between 0s and 1h")
	f("role: edge\npull:\n  resolve_ttl: 90h0m10s\n", "3: pull.resolve_ttl: 90h0m10s is not between 1s and 24h")
}

// What the check prints is a configuration that it takes.
func TestCheckPrintsAddressesAsNetworks(t *testing.T) {
	file := filepath.Join(t.TempDir(), "node.yaml")
	if err := os.WriteFile(file, []byte("role: edge\nlimits:\n  exempt: [10.0.0.1]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, stdout, stderr := weir("check", file)
	if !strings.Contains(stdout, "- 10.0.0.1/32") {
		t.Errorf("%s%s", stdout, stderr)
	}
	load(t, "printed", stdout, "edge")
}
