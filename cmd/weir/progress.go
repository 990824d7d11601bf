package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// progress shows a line that changes: in place on a terminal, as a plain line
// every plainEvery elsewhere.
type progress struct {
	w        io.Writer
	terminal bool
	width    int // of what stands on the terminal's line
	last     time.Time
}

const plainEvery = 5 * time.Second

func newProgress(w io.Writer) *progress {
	p := &progress{w: w, last: time.Now()}
	if f, ok := w.(*os.File); ok {
		_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
		p.terminal = err == nil
	}
	return p
}

func (p *progress) line(format string, args ...any) {
	if p.terminal {
		p.show(fmt.Sprintf(format, args...))
		return
	}
	if time.Since(p.last) >= plainEvery {
		p.last = time.Now()
		fmt.Fprintf(p.w, format+"\n", args...)
	}
}

func (p *progress) show(text string) {
	fmt.Fprintf(p.w, "\r%s%s", text, strings.Repeat(" ", max(0, p.width-len(text))))
	p.width = len(text)
}

// end shows the last state, which stays.
func (p *progress) end(format string, args ...any) {
	if p.terminal {
		p.show(fmt.Sprintf(format, args...))
		fmt.Fprintln(p.w)
		return
	}
	fmt.Fprintf(p.w, format+"\n", args...)
}
