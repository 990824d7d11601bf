package main

import (
	"strings"
	"testing"
	"time"

	"weir/edge"
	"weir/internal/worker"
)

// The systemd unit in the documents is well formed, and its time to stop is enough for
// a drain.
func TestSystemdUnitInDocument(t *testing.T) {
	keys := map[string]string{}
	for _, b := range docNamed(t, "docs/operations.md").blocks {
		if b.language != "ini" {
			continue
		}
		section := ""
		for line := range strings.Lines(b.text) {
			line = strings.TrimSpace(line)
			key, value, ok := strings.Cut(line, "=")
			switch {
			case line == "":
			case strings.HasPrefix(line, "[") && strings.HasSuffix(line, "]"):
				section = strings.Trim(line, "[]")
			case !ok || section == "" || value == "" || strings.TrimSpace(key) != key:
				t.Errorf("line %d: %q is no assignment in a section", b.line, line)
			default:
				keys[section+"."+key] = value
			}
		}
	}
	for key, want := range map[string]string{
		"Service.Type": "exec", "Service.ExecStart": "/usr/local/bin/weir edge ", "Service.ExecReload": "/usr/local/bin/weir reload",
		"Service.KillMode": "mixed", "Service.Restart": "always", "Install.WantedBy": "multi-user.target",
	} {
		if !strings.HasPrefix(keys[key], want) {
			t.Errorf("%s=%s, want %s", key, keys[key], want)
		}
	}
	stop, err := time.ParseDuration(keys["Service.TimeoutStopSec"] + "s")
	if need := edge.Default().Drain.Deadline + worker.DefaultConfig().StopGrace; err != nil || stop <= need {
		t.Errorf("TimeoutStopSec=%s, a drain and its end may take %v", keys["Service.TimeoutStopSec"], need)
	}
}
