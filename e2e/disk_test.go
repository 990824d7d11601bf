package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// The disk is full: what nodes write to their logs gets lost (each write to /dev/full
// fails), and they have no place for files. Nobody else notices: a publisher, players in
// each way, a worker that is started anew, a change of the configuration.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { full.Close() })
	start := func(id, role, path string) *process {
		cmd := exec.Command(weirBinary(t), role, "-c", path)
		cmd.Stdout, cmd.Stderr = full, full
		cmd.Env = append(os.Environ(), raceOptions, "TMPDIR=/nowhere", "HOME=/nowhere")
		p := startWith(t, id, cmd)
		p.raceFree = true // its reports are lost, but not that it has ended
		return p
	}
	config := func(role, id string, a addresses, more string) string {
		return fmt.Sprintf("role: %s\nnode: {id: %s}\nrtmp: {listen: %q}\nhttp: {listen: %q}\nadmin: {listen: %q}\nload: {soft_limit: 0, hard_limit: 0}\n%s",
			role, id, a.rtmp, a.http, a.admin, more)
	}
	at := free(t)
	origin := &node{id: "origin-1", rtmp: at.rtmp, http: at.http, admin: at.admin}
	origin.process = start(origin.id, "origin", writeConfig(t, origin.id, config("origin", origin.id, at, "")))
	origin.awaitReady()
	at = free(t)
	edge := &node{id: "edge-1", rtmp: at.rtmp, http: at.http, admin: at.admin}
	path := writeConfig(t, edge.id, config("edge", edge.id, at, "workers: 2\n"+upstreamNodes("rtmp", origin.places())))
	edge.process = start(edge.id, "edge", path)
	edge.awaitReady()
	workers := edge.awaitWorkers(2)

	publishClip(t, edge.rtmpURL("live/demo"))
	origin.awaitStream(demo, "live")
	players := []*player{playFLV(t, edge.httpURL("live/demo.flv"), ""), playFLV(t, origin.httpURL("live/demo.flv"), "")}
	for _, p := range players {
		p.await(50, 0)
	}
	eventually(t, waitTimeout, "a playlist", func() error {
		f, err := tryGet(edge.httpURL("live/demo.m3u8"))
		if err == nil && (f.status != 200 || !strings.Contains(string(f.body), ".ts")) {
			err = fmt.Errorf("%d %s", f.status, f.body)
		}
		return err
	})
	if r := weir(t, waitTimeout, "reload", "--admin", "http://"+edge.admin); r.code != 0 {
		t.Errorf("reload: exit code %d, %s", r.code, r.stderr)
	}
	other := 1 - *edge.awaitSessions("publish", demo, 1)[0].Worker // than that of the publisher
	if err := syscall.Kill(workers[other].PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, waitTimeout, "the worker is started anew", func() error {
		now, err := edge.workers()
		if err == nil && (len(now) != 2 || now[other].State != "ready" || now[other].PID == workers[other].PID) {
			err = fmt.Errorf("workers are %+v", now)
		}
		return err
	})
	clipSource(t).require(t, "player at the origin", players[1].end(), 50, rules{})
	late := playFLV(t, edge.httpURL("live/demo.flv"), "")
	late.await(25, 0)
	clipSource(t).require(t, "player at the edge", late.end(), 25, rules{})
}
