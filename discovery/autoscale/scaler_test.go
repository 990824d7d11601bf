package autoscale

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// group is a source, and a driver that does at once what it is told.
type group struct {
	mu     sync.Mutex
	lead   bool
	err    error
	fail   error // of the driver
	nodes  []Member
	done   []string
	number int
}

func (g *group) Nodes(context.Context, string) ([]Member, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]Member(nil), g.nodes...), g.err
}

func (g *group) Lead(context.Context, string) (bool, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.lead, g.err
}

func (g *group) Do(_ context.Context, a Action, _ string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.done = append(g.done, string(a.Kind)+a.Node)
	if g.fail != nil {
		return g.fail
	}
	if a.Kind == Start {
		g.number++
		g.nodes = append(g.nodes, Member{Node: Node{ID: fmt.Sprint("n", g.number), Up: true, Reported: true}})
	}
	return nil
}

func (g *group) set(change func(*group)) string {
	g.mu.Lock()
	defer g.mu.Unlock()
	change(g)
	return strings.Join(g.done, " ")
}

// Only the leader acts, only on what it knows, and a failed action is tried again.
func TestScaler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		g := &group{}
		cfg := DefaultConfig()
		cfg.Driver = Log
		s := New(cfg, g, slog.New(slog.NewTextHandler(&log, nil)), nil)
		s.driver = g
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		after := func(d time.Duration, want string, change func(*group)) {
			t.Helper()
			time.Sleep(d)
			synctest.Wait()
			if got := g.set(change); got != want {
				t.Errorf("done %q, want %q", got, want)
			}
		}
		after(10*time.Minute, "", func(g *group) { g.lead, g.err = true, errors.New("no quorum") })
		after(10*time.Minute, "", func(g *group) { g.err, g.fail = nil, errors.New("no machine") })
		after(15*time.Second, "", func(*group) {}) // nodes have to tell of themselves first
		after(1500*time.Millisecond, "start", func(g *group) { g.fail = nil })
		after(20*time.Second, "start", func(*group) {})
		after(12*time.Second, "start start start", func(g *group) { g.lead = false; g.nodes = nil })
		after(time.Hour, "start start start", func(*group) {})
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		for line, n := range map[string]int{
			"autoscaling pauses": 1, "this discovery server scales": 1, "another discovery server": 1, "msg=scaling ": 2,
			`msg="scaling failed"`: 1, `err="no machine"`: 1,
		} {
			if got := strings.Count(log.String(), line); got != n {
				t.Errorf("%q is logged %d times, want %d:\n%s", line, got, n, &log)
			}
		}
	})
}

func TestExec(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out")
	script := func(text string, timeout time.Duration) error {
		cfg := DefaultConfig()
		cfg.Driver, cfg.Group, cfg.Command = Exec, "live", []string{"sh", "-c", text, "scale", "x"}
		ctx, cancel := context.WithTimeout(t.Context(), timeout)
		defer cancel()
		return newDriver(cfg).Do(ctx, Action{Drain, "edge-1", 90 * time.Second, "night"}, "10.0.0.1")
	}
	if err := script(`echo "$1 $2 $3 $WEIR_ACTION $WEIR_NODE $WEIR_GROUP $WEIR_DEADLINE $WEIR_REASON" > `+out, 20*time.Second); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(out); err != nil || string(got) != "x drain edge-1 drain edge-1 live 90 night\n" {
		t.Errorf("the program saw %q, %v", got, err)
	}
	if err := script("echo out of quota; exit 3", 20*time.Second); err == nil || !strings.Contains(err.Error(), "exit status 3: out of quota") {
		t.Errorf("a program that fails: %v", err)
	}
	if err := script("exec sleep 1000", 50*time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a program that hangs: %v", err)
	}
	if err := script("head -c 100000 /dev/zero | tr '\\0' x; exit 1", 20*time.Second); err == nil || len(err.Error()) > 2*tailSize {
		t.Errorf("much output: %d bytes", len(fmt.Sprint(err)))
	}
}

func TestWebhookAndAdmin(t *testing.T) {
	var got []string
	status := 204
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got = append(got, strings.TrimSpace(fmt.Sprintf("%s %s %s %s", r.Method, r.URL, r.Header.Get("Authorization"), body)))
		w.WriteHeader(status)
	}))
	defer s.Close()
	host, port, _ := net.SplitHostPort(s.Listener.Addr().String())
	cfg := DefaultConfig()
	cfg.Driver, cfg.URL, cfg.Token, cfg.Group, cfg.AdminToken = Webhook, s.URL+"/hook", "t", "live", "a"
	cfg.AdminPort, _ = strconv.Atoi(port)
	d := newDriver(cfg)
	do := func(a Action) error { return d.Do(t.Context(), a, host) }
	for _, a := range []Action{{Kind: Start, Reason: "day"}, {Drain, "n", time.Minute, "night"}, {Kind: Undrain, Node: "n"}, {Kind: Stop, Node: "n", Reason: "r"}} {
		if err := do(a); err != nil {
			t.Errorf("%v: %v", a, err)
		}
	}
	want := []string{
		`POST /hook Bearer t {"action":"start","reason":"day","group":"live"}`,
		`POST /api/v1/drain?deadline=1m0s Bearer a`,
		`DELETE /api/v1/drain Bearer a`,
		`POST /hook Bearer t {"action":"stop","node":"n","reason":"r","group":"live"}`,
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("calls\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	// Without the port of admin interfaces the webhook drains as well.
	cfg.AdminPort, got = 0, nil
	if err := newDriver(cfg).Do(t.Context(), Action{Drain, "n", time.Minute, "night"}, host); err != nil {
		t.Error(err)
	}
	var body webhookBody
	if err := json.Unmarshal([]byte(strings.TrimPrefix(got[0], "POST /hook Bearer t ")), &body); err != nil || body.DeadlineSeconds != 60 || body.Kind != Drain {
		t.Errorf("%q, %v", got, err)
	}
	status = 302
	if err := do(Action{Kind: Start}); err == nil || !strings.Contains(err.Error(), "status 302") {
		t.Errorf("status 302: %v", err)
	}
	s.Close()
	if err := do(Action{Kind: Start}); err == nil || strings.Contains(err.Error(), "/hook") {
		t.Errorf("nobody listens: %v", err)
	}
}

func TestValidate(t *testing.T) {
	good := DefaultConfig()
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	f := func(want string, change func(*Config)) {
		t.Helper()
		c := DefaultConfig()
		change(&c)
		if err := c.Validate(); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%v, want an error about %s", err, want)
		}
	}
	f("driver: ", func(c *Config) { c.Driver = "hope" })
	f("min: ", func(c *Config) { c.Min = 0 })
	f("max: ", func(c *Config) { c.Max = 1 })
	f("scale_out: ", func(c *Config) { c.ScaleOut = 1.1 })
	f("scale_in: ", func(c *Config) { c.ScaleIn = 0.65 })
	f("out_after: ", func(c *Config) { c.OutAfter = 0 })
	f("in_after: ", func(c *Config) { c.InAfter = 0 })
	f("warm_up: ", func(c *Config) { c.WarmUp = 0 })
	f("cool_down: ", func(c *Config) { c.CoolDown = -1 })
	f("settle: ", func(c *Config) { c.Settle = -1 })
	f("drain_deadline: ", func(c *Config) { c.DrainDeadline = 0 })
	f("retry: ", func(c *Config) { c.Retry = 0 })
	f("timeout: ", func(c *Config) { c.Timeout = time.Hour })
	f("admin_port: ", func(c *Config) { c.AdminPort = 70000 })
	f("command: ", func(c *Config) { c.Driver = Exec })
	f("url: ", func(c *Config) { c.Driver, c.URL = Webhook, "ftp://x" })
	f("token: ", func(c *Config) { c.Token = "a b" })
	f("admin_token: ", func(c *Config) { c.AdminToken = "a b" })
}
