package worker

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// supervisorVariable makes the test binary a supervisor of its own.
const supervisorVariable = "WEIR_TEST_SUPERVISOR"

// The test binary is also the children's binary, and a supervisor to kill.
func TestMain(m *testing.M) {
	child, err := Inherit()
	switch {
	case err == nil:
		os.Exit(childMain(child, os.Args[1:]))
	case !errors.Is(err, ErrNotChild):
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	case os.Getenv(supervisorVariable) != "":
		os.Exit(supervisorMain())
	case os.Getenv(upgradeVariable) != "":
		left, err := TakeOver()
		if err != nil && !errors.Is(err, ErrNoTakeover) {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
		os.Exit(upgradableMain(left))
	}
	// A program with the race detector sleeps a second at its exit, unless:
	os.Setenv("GORACE", "atexit_sleep_ms=0 "+os.Getenv("GORACE"))
	goleak.VerifyTestMain(m)
}

// answer is what a child says to whoever connects.
type answer struct {
	PID      int
	Name     string
	Index    int
	Count    int
	Config   string
	Variable string // what is left of the handover in the environment
}

// childMain is a child. The first argument says what it does.
func childMain(c *Child, args []string) int {
	defer c.Close()
	switch args[0] {
	case "serve":
		switch string(c.Config) {
		case "exit":
			return 3
		case "hang":
			<-c.Context().Done()
			return 0
		}
		return serve(c)
	case "hang-if": // a file exists
		if _, err := os.Stat(args[1]); err == nil {
			<-c.Context().Done()
			return 0
		}
		return serve(c)
	case "stubborn":
		signal.Ignore(syscall.SIGTERM)
		c.Ready()
		select {}
	case "deaf": // does not retire
		c.Ready()
		<-c.Context().Done()
		return 0
	case "print":
		for _, text := range args[1:] {
			fmt.Print(text)
		}
		c.Ready()
		<-c.Context().Done()
		return 0
	}
	return 4
}

// serve answers at each listener and at the siblings' socket: first an answer,
// then each line with an "echo " in front. On the end of its context it serves
// what it has accepted up to the first line, and returns.
func serve(c *Child) int {
	sibling, err := c.ListenSibling(slog.Default())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 5
	}
	listeners := []net.Listener{sibling}
	for _, l := range c.Listeners {
		listeners = append(listeners, l)
	}
	var serving sync.WaitGroup
	for _, l := range listeners {
		serving.Go(func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				serving.Go(func() { talk(c, conn) })
			}
		})
	}
	c.Ready()
	select {
	case <-c.Context().Done():
	case <-c.Retire():
		for _, l := range listeners {
			l.Close()
		}
		l, err := c.Retired(slog.Default())
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 6
		}
		defer l.Close()
	}
	for _, l := range listeners {
		l.Close()
	}
	serving.Wait()
	return 0
}

func talk(c *Child, conn net.Conn) {
	defer conn.Close()
	stop := context.AfterFunc(c.Context(), func() { _ = conn.SetReadDeadline(time.Now()) })
	defer stop()
	_ = json.NewEncoder(conn).Encode(answer{os.Getpid(), c.Name, c.Index, c.Count, string(c.Config), os.Getenv(handoverVariable)})
	lines := bufio.NewScanner(conn)
	for lines.Scan() {
		fmt.Fprintln(conn, "echo", lines.Text())
	}
}

// supervisorMain runs children until it is killed. One of them does not stop
// when it is asked to.
func supervisorMain() int {
	cfg := DefaultConfig()
	cfg.StopGrace = 200 * time.Millisecond
	s, err := Open(context.Background(), Options{
		Config: cfg,
		Log:    slog.New(slog.DiscardHandler),
		Specs: []Spec{
			{Name: "workers", Count: 2, Args: []string{"serve"}, Listen: []Address{{"http", "http.listen", "127.0.0.1:0"}}},
			{Name: "stubborn", Args: []string{"stubborn"}},
		},
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		<-s.Ready()
		for _, state := range s.States() {
			fmt.Println(state.PID)
		}
		fmt.Println("ready")
	}()
	if err := s.Run(ctx); err != nil {
		return 1
	}
	return 0
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }
