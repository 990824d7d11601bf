package worker

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// upgradeVariable makes the test binary a supervisor that can be upgraded.
const upgradeVariable = "WEIR_TEST_UPGRADE"

// said is a line of such a supervisor.
type said struct {
	Generation int
	Address    string
	States     []State
	Retiring   []State
	Error      string
}

// upgradableMain is a supervisor that answers each line of its standard input with
// one: nothing for its state, or the path of a program to go on as.
func upgradableMain(t *Takeover) int {
	if t != nil && t.Trial {
		if string(t.Config) == "mute" {
			return 0
		}
		fmt.Println("generation n")
		return 0
	}
	generation, lines := 1, os.Stdin
	if t != nil {
		_ = json.Unmarshal(t.Note, &generation)
		lines = t.Files["lines"]
	}
	spec := workers(2)
	spec.RollGrace = time.Hour
	s, err := Open(context.Background(), Options{Config: DefaultConfig(), Log: discard(), Specs: []Spec{spec}, From: t})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	<-s.Ready()
	say := func(err error) {
		line := said{Generation: generation, Address: s.Addr("edge", "http").String(), States: s.States(), Retiring: s.Retiring()}
		if err != nil {
			line.Error = err.Error()
		}
		_ = json.NewEncoder(os.Stdout).Encode(line)
	}
	say(nil)
	for one := make([]byte, 1); ; { // nothing may be read ahead
		var path []byte
		for {
			if n, err := lines.Read(one); n == 0 || err != nil {
				cancel()
				if <-ended != nil {
					return 1
				}
				return 0
			}
			if one[0] == '\n' {
				break
			}
			path = append(path, one[0])
		}
		if len(path) == 0 {
			say(nil)
			continue
		}
		say(upgrade(ctx, s, string(path), generation, lines)) // if it fails
	}
}

func upgrade(ctx context.Context, s *Supervisor, path string, generation int, lines *os.File) error {
	path, mute := strings.CutSuffix(path, " mute")
	image, err := OpenImage(path)
	if err != nil {
		return err
	}
	config := []byte("two")
	if mute {
		config = []byte("mute")
	}
	if _, err := s.Try(ctx, image, config); err != nil {
		return err
	}
	if err := s.Roll(ctx, "edge", image, config); err != nil {
		return err
	}
	return s.Replace(image, func() (Leave, error) {
		return Leave{Config: config, Note: generation + 1, Files: map[string]*os.File{"lines": lines}}, nil
	})
}

// upgradable is a supervisor in a process of its own.
type upgradable struct {
	t     *testing.T
	cmd   *exec.Cmd
	in    io.Writer
	lines *bufio.Scanner
}

func startUpgradable(t *testing.T) *upgradable {
	t.Helper()
	u := &upgradable{t: t, cmd: exec.Command(os.Args[0])}
	u.cmd.Env = append(os.Environ(), upgradeVariable+"=1")
	u.cmd.Stderr = t.Output()
	in, err := u.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := u.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := u.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		if err := u.cmd.Wait(); err != nil {
			t.Errorf("the supervisor's end: %v", err)
		}
	})
	u.in, u.lines = in, bufio.NewScanner(out)
	return u
}

// tell writes a line, unless it is what the supervisor says by itself.
func (u *upgradable) tell(line string) {
	u.t.Helper()
	if _, err := io.WriteString(u.in, line+"\n"); err != nil {
		u.t.Fatal(err)
	}
}

func (u *upgradable) next() (line said) {
	u.t.Helper()
	if !u.lines.Scan() {
		u.t.Fatalf("the supervisor says nothing: %v", u.lines.Err())
	}
	if err := json.Unmarshal(u.lines.Bytes(), &line); err != nil {
		u.t.Fatalf("%s: %v", u.lines.Bytes(), err)
	}
	return line
}

// Another program goes on in the supervisor's process, twice: it has the workers, the
// sockets and those that retire; nobody who connects meanwhile is refused or reset.
func TestAnotherProgramTakesOver(t *testing.T) {
	u := startUpgradable(t)
	first := u.next()
	address, err := net.ResolveTCPAddr("tcp", first.Address)
	if err != nil {
		t.Fatal(err)
	}
	old := connectTo(t, address, 0)
	ctx, cancel := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	defer clients.Wait()
	defer cancel()
	for range 4 {
		clients.Go(func() {
			for ctx.Err() == nil {
				c, err := connect(address)
				if err != nil {
					t.Errorf("connect during an upgrade: %v", err)
					return
				}
				c.Close()
			}
		})
	}
	last := first
	for generation := 2; generation <= 3; generation++ {
		u.tell(os.Args[0])
		now := u.next()
		if now.Error != "" || now.Generation != generation {
			t.Fatalf("generation %d: %+v", generation, now)
		}
		for i, s := range now.States {
			if s.Phase != Ready || s.PID == 0 || s.PID == last.States[i].PID || s.Restarts != last.States[i].Restarts+1 {
				t.Errorf("generation %d: worker %+v, was %+v", generation, s, last.States[i])
			}
		}
		last = now
		old.mustEcho(t, "still here")
	}
	cancel()
	clients.Wait()
	u.tell("")
	if now := u.next(); len(now.Retiring) == 0 || now.Retiring[0].PID != old.PID {
		t.Errorf("retiring: %+v", now.Retiring)
	}
	if c := connectTo(t, address, 1); c.Config != "two" || c.PID != last.States[1].PID {
		t.Errorf("worker 1: %+v", c.answer)
	}

	// The next program supervises what it has not started.
	old.Close()
	kill(t, last.States[1].PID)
	eventually(t, "end of the old worker, and another one for the dead", func() bool {
		u.tell("")
		now := u.next()
		return len(now.Retiring) == 0 && now.States[1].Phase == Ready && now.States[1].PID != last.States[1].PID && now.States[1].LastExit == "signal: killed"
	})
	if name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", u.cmd.Process.Pid)); err != nil || !strings.HasPrefix(filepath.Base(os.Args[0]), strings.TrimSpace(string(name))) {
		t.Errorf("the process is called %q, %v", name, err)
	}
}

// What is no program, or not one that can take over, does not.
func TestAProgramThatCannotTakeOver(t *testing.T) {
	u := startUpgradable(t)
	before := u.next()
	garbage := filepath.Join(t.TempDir(), "weir")
	if err := os.WriteFile(garbage, []byte{0x7f, 'E', 'L', 'F', 0, 0}, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ path, want string }{
		{filepath.Join(t.TempDir(), "nothing"), "no such file"},
		{garbage, "exec format error"},
		{"/bin/false", "exit status 1"},
		{"/bin/true", "no weir that can take over"},
		{os.Args[0] + " mute", "no weir that can take over"},
	} {
		u.tell(c.path)
		now := u.next()
		if !strings.Contains(now.Error, c.want) || now.Generation != 1 {
			t.Errorf("%s: %+v, want %s", c.path, now, c.want)
		}
		for i, s := range now.States {
			if s.PID != before.States[i].PID {
				t.Errorf("%s: worker %d was rolled", c.path, i)
			}
		}
	}
}

func TestTakeOverRefuses(t *testing.T) {
	f := func(text, want string) {
		t.Helper()
		t.Setenv(takeoverVariable, text)
		_, err := TakeOver()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
		if _, err := TakeOver(); !errors.Is(err, ErrNoTakeover) {
			t.Errorf("the second time: %v", err)
		}
	}
	f("", "unexpected end")
	f(`{"version": 2}`, "version 2, this program speaks 1")
	f(`{"version": 1, "config_fd": 999}`, "read configuration")
}
