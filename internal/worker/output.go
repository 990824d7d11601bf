package worker

import (
	"bufio"
	"io"
	"sync"
)

// maxLine is where a line of a child's output is broken in two, in bytes.
const maxLine = 64 << 10

// lineWriter writes whole lines of several processes to one writer.
type lineWriter struct {
	mu sync.Mutex
	// Guarded by mu.
	w    io.Writer
	line []byte
}

func (w *lineWriter) writeLine(prefix string, line []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.line = append(append(w.line[:0], prefix...), line...)
	if w.line[len(w.line)-1] != '\n' {
		w.line = append(w.line, '\n')
	}
	// Output that cannot be written is lost: a full disk or a closed terminal
	// must not stop a child, which would block on its pipe.
	_, _ = w.w.Write(w.line)
}

// copyLines writes each line of r with the prefix until r ends. What is left
// without an end of line when r ends gets one.
func (w *lineWriter) copyLines(prefix string, r io.Reader) {
	lines := bufio.NewReaderSize(r, maxLine)
	for {
		line, err := lines.ReadSlice('\n')
		if len(line) > 0 {
			w.writeLine(prefix, line)
		}
		if err != nil && err != bufio.ErrBufferFull {
			return
		}
	}
}
