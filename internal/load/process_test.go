package load

import (
	"log/slog"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A process that has no descriptor left is full, also when it would need one to read its
// limit again.
func TestNoDescriptorIsLeft(t *testing.T) {
	var had unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &had); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &had); err != nil {
			t.Fatal(err)
		}
	}()
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 64, Max: had.Max}); err != nil {
		t.Fatal(err)
	}
	for _, forgets := range []bool{false, true} {
		p, err := NewProcess(ProcessOptions{Config: DefaultConfig(), Worker: 3, Log: slog.New(slog.DiscardHandler), Sessions: func() (int, int) { return 5, 1 }})
		if err != nil {
			t.Fatal(err)
		}
		now := time.Now()
		p.measure(now)
		if r, known := p.Report(); known || r.Worker != 3 || r.Descriptors <= 0 || r.Descriptors >= 1 || r.Players != 5 || r.Publishers != 1 {
			t.Errorf("%+v, known %v", r, known)
		}
		var open []*os.File
		for {
			f, err := os.Open(os.DevNull)
			if err != nil {
				break
			}
			open = append(open, f)
		}
		if forgets {
			p.reader.settled = settled{}
		}
		p.measure(now.Add(window))
		for _, f := range open {
			f.Close()
		}
		if r, _ := p.Report(); r.Descriptors < 1 {
			t.Errorf("forgets %v: %+v", forgets, r)
		}
		p.measure(now.Add(2 * window))
		if r, known := p.Report(); !known || r.Descriptors >= 1 {
			t.Errorf("with descriptors again: %+v, known %v", r, known)
		}
	}
}

// A worker answers its supervisor, and knows the status from then on.
func TestExchange(t *testing.T) {
	p, err := NewProcess(ProcessOptions{Config: DefaultConfig(), Delays: &Delays{}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	p.delays.Observe(time.Now(), time.Second)
	if r, known := p.Exchange(Status{Soft: true}); known || r.Lateness < time.Second {
		t.Errorf("%+v, known %v", r, known)
	}
	if s := p.Status(); !s.Soft || s.Hard {
		t.Errorf("status %+v", s)
	}
}
