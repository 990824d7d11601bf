package worker

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

// patience bounds what the tests wait for. The machine may be busy.
const patience = 20 * time.Second

// run opens and runs a supervisor until the end of the test and returns it when
// all is ready.
func run(t *testing.T, o Options) *Supervisor {
	t.Helper()
	if o.Config == (Config{}) {
		o.Config = DefaultConfig()
	}
	if o.Log == nil {
		o.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	s, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
		for _, state := range s.States() {
			if state.Phase != Stopped || state.PID != 0 {
				t.Errorf("after Run: %+v", state)
			}
		}
	})
	select {
	case <-s.Ready():
	case err := <-ended:
		ended <- nil
		t.Fatalf("Run: %v", err)
	case <-time.After(patience):
		t.Fatal("not ready")
	}
	return s
}

func workers(count int) Spec {
	return Spec{Name: "edge", Count: count, Args: []string{"serve"}, Config: []byte("one"),
		Listen: []Address{{"http", "http.listen", "127.0.0.1:0"}, {"rtmp", "rtmp.listen", "127.0.0.1:0"}}}
}

// eventually waits for a condition that nothing announces.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: did not come", what)
		}
	}
}

// client is a connection to a child.
type client struct {
	net.Conn
	lines *bufio.Reader
	answer
}

func talkTo(c net.Conn) (*client, error) {
	cl := &client{Conn: c, lines: bufio.NewReader(c)}
	_ = c.SetDeadline(time.Now().Add(patience))
	line, err := cl.lines.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &cl.answer)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return cl, nil
}

func connect(address net.Addr) (*client, error) {
	c, err := net.Dial("tcp", address.String())
	if err != nil {
		return nil, err
	}
	return talkTo(c)
}

func mustConnect(t *testing.T, address net.Addr) *client {
	t.Helper()
	c, err := connect(address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// connectTo connects until the worker with the index answers.
func connectTo(t *testing.T, address net.Addr, index int) *client {
	t.Helper()
	for range 1000 {
		c := mustConnect(t, address)
		if c.Index == index {
			return c
		}
		c.Close()
	}
	t.Fatalf("worker %d never answers", index)
	return nil
}

func (c *client) mustEcho(t *testing.T, word string) {
	t.Helper()
	if _, err := io.WriteString(c, word+"\n"); err != nil {
		t.Fatal(err)
	}
	if line, err := c.lines.ReadString('\n'); err != nil || line != "echo "+word+"\n" {
		t.Fatalf("echo of %s: %q, %v", word, line, err)
	}
}

func TestWorkersShareThePortsAndKnowWhoTheyAre(t *testing.T) {
	s := run(t, Options{Specs: []Spec{workers(3)}})
	seen := map[int]int{}
	for _, name := range []string{"http", "rtmp"} {
		for index := range 3 {
			c := connectTo(t, s.Addr("edge", name), index)
			if c.Name != "edge" || c.Count != 3 || c.Config != "one" || c.Variable != "" {
				t.Errorf("worker %d: %+v", index, c.answer)
			}
			seen[c.PID]++
		}
	}
	if len(seen) != 3 {
		t.Errorf("processes and the listeners they were met at: %v; want 3 with 2", seen)
	}
	for i, state := range s.States() {
		if state.Phase != Ready || seen[state.PID] != 2 || state.Restarts != 0 || state.Index != i || state.StartedAt.IsZero() {
			t.Errorf("state %+v", state)
		}
	}
	if err := s.CheckReady(t.Context()); err != nil {
		t.Error(err)
	}
	if s.Addr("edge", "quic") != nil || s.Addr("origin", "http") != nil {
		t.Error("there is an address that nobody asked for")
	}
}

// A worker is killed twice: the second time there is a pause before the
// restart. Who connects in it waits and is served; its sibling's client notices
// nothing.
func TestDeathOfAWorkerLosesNoQueuedConnection(t *testing.T) {
	cfg := DefaultConfig()
	cfg.RestartMin, cfg.RestartMax = 2*time.Second, 2*time.Second
	set := metrics.NewSet()
	s := run(t, Options{Config: cfg, Specs: []Spec{workers(2)}, Metrics: set})
	address := s.Addr("edge", "http")
	witness := connectTo(t, address, 1)

	victim := s.States()[0].PID
	died := time.Now()
	kill(t, victim)
	eventually(t, "first restart", func() bool { st := s.States()[0]; return st.Phase == Ready && st.PID != victim })
	if took := time.Since(died); took > time.Second {
		t.Errorf("back after %v, want less than 1 s", took)
	}
	kill(t, s.States()[0].PID)
	eventually(t, "death", func() bool { return s.States()[0].Phase == Restarting })
	if err := s.CheckReady(t.Context()); err == nil || !strings.Contains(err.Error(), "edge 0 is restarting") {
		t.Errorf("CheckReady: %v", err)
	}

	var conns []net.Conn
	for range 64 {
		c, err := net.Dial("tcp", address.String())
		if err != nil {
			t.Fatalf("connect while the worker is dead: %v", err)
		}
		conns = append(conns, c)
	}
	if st := s.States()[0]; st.Phase != Restarting {
		t.Fatalf("the worker was back before all had connected: %+v", st)
	}
	served := map[int]int{}
	for _, c := range conns {
		cl, err := talkTo(c)
		if err != nil {
			t.Fatalf("connection made while the worker was dead: %v", err)
		}
		served[cl.Index]++
		cl.Close()
	}
	if served[0] == 0 || served[1] == 0 {
		t.Errorf("connections by worker: %v; want some at each", served)
	}
	witness.mustEcho(t, "undisturbed")
	if st := s.States()[0]; st.Restarts != 2 || st.LastExit != "signal: killed" {
		t.Errorf("%+v", st)
	}
	var text bytes.Buffer
	set.WritePrometheus(&text)
	if want := `weir_worker_restarts_total{name="edge",worker="0"} 2`; !strings.Contains(text.String(), want) {
		t.Errorf("metrics %q, want %s", text.String(), want)
	}
}

func TestFiftyRestartsLeaveNothingBehind(t *testing.T) {
	cfg := DefaultConfig()
	cfg.RestartReset = 1 // every death is the first one
	s := run(t, Options{Config: cfg, Specs: []Spec{workers(5)}, Output: io.Discard})
	round := func() {
		before := s.States()
		for _, st := range before {
			kill(t, st.PID)
		}
		for i, st := range before {
			eventually(t, "restart", func() bool { now := s.States()[i]; return now.Phase == Ready && now.PID != st.PID })
		}
	}
	// The end of the output of the dead is read in the background.
	settled := func(want int) {
		t.Helper()
		now := 0
		eventually(t, "count of descriptors", func() bool { now = descriptors(t); return now <= want })
	}
	// The garbage collector closes files that nobody has: it would hide a leak.
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	round()
	before := descriptors(t)
	for range 10 {
		round()
	}
	settled(before)
}

func descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func TestRollUnderLoadRefusesAndResetsNobody(t *testing.T) {
	s := run(t, Options{Specs: []Spec{workers(2)}})
	address := s.Addr("edge", "http")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var clients sync.WaitGroup
	var mu sync.Mutex
	configs := map[string]int{}
	for range 4 {
		clients.Go(func() {
			for ctx.Err() == nil {
				c, err := connect(address)
				if err != nil {
					t.Errorf("connect during the roll: %v", err)
					return
				}
				c.Close()
				mu.Lock()
				configs[c.Config]++
				mu.Unlock()
			}
		})
	}
	before := s.States()
	const rolls = 10
	for i := range rolls {
		config := strconv.Itoa(i)
		if err := s.Roll(ctx, "edge", nil, []byte(config)); err != nil {
			t.Error(err)
		}
		for range 8 {
			if c := mustConnect(t, address); c.Config != config {
				t.Errorf("after Roll to %s a worker has %s", config, c.Config)
			}
		}
	}
	cancel()
	clients.Wait()
	t.Logf("connections by configuration: %v", configs)
	for i, st := range s.States() {
		if st.PID == before[i].PID || st.Restarts != rolls || st.Phase != Ready {
			t.Errorf("%+v", st)
		}
	}
}

func TestRollWithABadConfigurationKeepsTheOldOne(t *testing.T) {
	cfg := DefaultConfig()
	s := run(t, Options{Config: cfg, Specs: []Spec{workers(2)}})
	untouched := s.States()[1].PID
	err := s.Roll(t.Context(), "edge", nil, []byte("exit"))
	if err == nil || !strings.Contains(err.Error(), "roll edge 0 (0 of 2 are rolled): exit status 3 before it was ready") {
		t.Errorf("Roll: %v", err)
	}
	eventually(t, "worker 0", func() bool { return s.States()[0].Phase == Ready })
	if c := connectTo(t, s.Addr("edge", "http"), 0); c.Config != "one" {
		t.Errorf("worker 0 has configuration %s", c.Config)
	}
	if st := s.States()[1]; st.PID != untouched {
		t.Errorf("worker 1 was restarted: %+v", st)
	}
	if err := s.Roll(t.Context(), "origin", nil, nil); err == nil {
		t.Error("Roll of a spec that does not exist: no error")
	}
	if err := s.Roll(t.Context(), "edge", nil, make([]byte, maxConfig+1)); err == nil {
		t.Error("Roll to a configuration that is too long: no error")
	}
}

// A worker that hangs at its start is killed, over and over; when the cause is
// gone it serves.
func TestAWorkerThatIsNeverReadyIsKilledAndRestarted(t *testing.T) {
	cfg := DefaultConfig()
	cfg.RestartMax = cfg.RestartMin
	cfg.ReadyTimeout = 2 * time.Second
	obstacle := filepath.Join(t.TempDir(), "obstacle")
	s := run(t, Options{Config: cfg, Specs: []Spec{{Name: "edge", Args: []string{"hang-if", obstacle}}}})
	if err := os.WriteFile(obstacle, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	kill(t, s.States()[0].PID)
	eventually(t, "failure", func() bool { return s.States()[0].Phase == Failed })
	if st := s.States()[0]; st.LastExit != "killed, not ready after 2s" {
		t.Errorf("%+v", st)
	}
	if err := os.Remove(obstacle); err != nil {
		t.Fatal(err)
	}
	eventually(t, "recovery", func() bool { return s.States()[0].Phase == Ready })
}

func TestAChildThatCannotStartEndsRun(t *testing.T) {
	f := func(bad Spec, want string) {
		t.Helper()
		cfg := DefaultConfig()
		cfg.ReadyTimeout = 2 * time.Second
		s, err := Open(t.Context(), Options{Config: cfg, Log: slog.New(slog.DiscardHandler), Specs: []Spec{workers(1), bad}})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Run(t.Context()); err == nil || err.Error() != want {
			t.Errorf("Run: %v, want %s", err, want)
		}
		for _, st := range s.States() {
			if st.PID != 0 {
				t.Errorf("left behind: %+v", st)
			}
		}
		if err := s.Run(t.Context()); !errors.Is(err, ErrStopped) {
			t.Errorf("second Run: %v", err)
		}
		if err := s.Roll(t.Context(), "edge", nil, nil); !errors.Is(err, ErrStopped) {
			t.Errorf("Roll after Run: %v", err)
		}
	}
	f(Spec{Name: "origin", Args: []string{"serve"}, Config: []byte("exit")}, "start origin: exit status 3 before it was ready")
	f(Spec{Name: "origin", Args: []string{"serve"}, Config: []byte("hang")}, "start origin: killed, not ready after 2s")
}

func TestOpenRefuses(t *testing.T) {
	f := func(o Options, want string) {
		t.Helper()
		before := descriptors(t)
		if o.Config == (Config{}) {
			o.Config = DefaultConfig()
		}
		s, err := Open(t.Context(), o)
		if err == nil {
			s.Close()
			t.Errorf("Open: no error, want %s", want)
		} else if !strings.Contains(err.Error(), want) {
			t.Errorf("Open: %v, want %s", err, want)
		}
		if after := descriptors(t); after != before {
			t.Errorf("%d descriptors before, %d after", before, after)
		}
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	// Another node of the same user, which shares its port among its workers.
	node, err := Open(t.Context(), Options{Config: DefaultConfig(), Log: slog.Default(), Specs: []Spec{workers(2)}})
	if err != nil {
		t.Fatal(err)
	}
	defer node.Close()
	for _, busy := range []string{taken.Addr().String(), node.Addr("edge", "http").String()} {
		spec := workers(2)
		spec.Listen[1].Address = busy
		f(Options{Specs: []Spec{spec}}, "listen "+busy+" (rtmp.listen): address already in use")
	}
	spec := workers(1)
	spec.Listen[0].Address = "127.0.0.1"
	f(Options{Specs: []Spec{spec}}, "listen 127.0.0.1 (http.listen): address 127.0.0.1: missing port in address")
	spec = workers(1)
	spec.Listen[0].Name = "rtmp"
	f(Options{Specs: []Spec{spec}}, "two listeners of edge are called rtmp")
	f(Options{Specs: []Spec{workers(1), workers(1)}}, `bad spec "edge"`)
	f(Options{Specs: []Spec{{}}}, `bad spec ""`)
	f(Options{Specs: []Spec{{Name: "edge", Config: make([]byte, maxConfig+1)}}}, "more than 16777216 bytes")
	f(Options{}, "no processes")
	f(Options{Config: Config{RestartMin: 2, RestartMax: 1}, Specs: []Spec{workers(1)}}, "restart_max: 1ns is less than restart_min, 2ns")
}

func TestConfig(t *testing.T) {
	if err := DefaultConfig().Validate(); err != nil {
		t.Error(err)
	}
	err := Config{RestartMax: -1}.Validate()
	for _, key := range []string{"ready_timeout: ", "stop_grace: ", "restart_min: ", "restart_reset: ", "restart_max: "} {
		if err == nil || !strings.Contains("\n"+err.Error(), "\n"+key) {
			t.Errorf("%v: has no line that begins with %s", err, key)
		}
	}
}

func TestPauses(t *testing.T) {
	p := &process{sup: &Supervisor{cfg: DefaultConfig()}}
	f := func(uptime, atMost time.Duration) {
		t.Helper()
		if pause := p.pause(uptime); pause > atMost || pause < atMost/2 {
			t.Errorf("pause of %v, want %v to %v", pause, atMost/2, atMost)
		}
	}
	const ms = time.Millisecond
	for _, atMost := range []time.Duration{0, 100 * ms, 200 * ms, 400 * ms, 800 * ms, 1600 * ms, 3200 * ms, 5000 * ms, 5000 * ms} {
		f(time.Second, atMost)
	}
	for range 100 {
		f(0, 5000*ms)
	}
	f(10*time.Second, 0)
	f(0, 100*ms)
}

// Of a process that does not stop nothing is left after the grace.
func TestStubbornChildIsKilled(t *testing.T) {
	cfg := DefaultConfig()
	cfg.StopGrace = 50 * time.Millisecond
	s, err := Open(t.Context(), Options{Config: cfg, Log: slog.New(slog.DiscardHandler), Specs: []Spec{{Name: "mule", Args: []string{"stubborn"}}}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	<-s.Ready()
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if st := s.States()[0]; st.LastExit != "signal: killed" || st.Phase != Stopped {
		t.Errorf("%+v", st)
	}
}

// What a terminal sends to the whole group on Ctrl-C is not for the children.
func TestChildrenIgnoreTheTerminal(t *testing.T) {
	s := run(t, Options{Specs: []Spec{workers(1)}})
	c := mustConnect(t, s.Addr("edge", "http"))
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGHUP} {
		if err := syscall.Kill(c.PID, sig); err != nil {
			t.Fatal(err)
		}
		c.mustEcho(t, sig.String())
	}
}

// The supervisor is killed; the write ends of its output pipe are in its
// children, so the pipe ends when the last of them is gone.
func TestNoOrphans(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	supervisor := exec.Command(self)
	supervisor.Env = append(os.Environ(), supervisorVariable+"=1")
	supervisor.Stdout, supervisor.Stderr = w, w
	if err := supervisor.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	_ = r.SetReadDeadline(time.Now().Add(patience))
	out := bufio.NewScanner(r)
	var children []int
	for out.Scan() && out.Text() != "ready" {
		pid, err := strconv.Atoi(out.Text())
		if err != nil {
			t.Errorf("the supervisor says %q", out.Text())
		}
		children = append(children, pid)
	}
	kill(t, supervisor.Process.Pid)
	if err := supervisor.Wait(); err == nil {
		t.Error("the supervisor was not killed")
	}
	for out.Scan() {
		t.Errorf("after the death: %s", out.Text())
	}
	if err := out.Err(); err != nil {
		t.Errorf("children live on: %v", err)
	}
	if len(children) != 3 {
		t.Errorf("children %v, want 3", children)
	}
}

func TestOutputIsWholeLinesWithNames(t *testing.T) {
	var out recorder
	s := run(t, Options{Output: &out, Specs: []Spec{
		{Name: "edge", Args: []string{"print", "first\nsec", "ond\n", "\n"}},
		{Name: "origin a", Args: []string{"print", strings.Repeat("x", maxLine+1) + "\n", "no end"}},
	}})
	const want = 6
	eventually(t, "output", func() bool { return len(out.lines("")) >= want-1 })
	for _, st := range s.States() {
		kill(t, st.PID) // the last line has no end until then
	}
	eventually(t, "last line", func() bool { return len(out.lines("origin a | no end")) >= 1 })
	for _, line := range []string{"edge     | first\n", "edge     | second\n", "edge     | \n",
		"origin a | " + strings.Repeat("x", maxLine) + "\n", "origin a | x\n", "origin a | no end\n"} {
		if len(out.lines(line)) == 0 {
			t.Errorf("no line %.40q", line)
		}
	}
}

// recorder keeps what is written, one entry for each Write.
type recorder struct {
	mu      sync.Mutex
	entries []string
}

func (r *recorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.entries = append(r.entries, string(p))
	return len(p), nil
}

func (r *recorder) lines(prefix string) (found []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.entries {
		if strings.HasPrefix(e, prefix) {
			found = append(found, e)
		}
	}
	return found
}

func kill(t *testing.T, pid int) {
	t.Helper()
	if pid <= 0 {
		t.Fatalf("no process to kill: pid %d", pid)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}
