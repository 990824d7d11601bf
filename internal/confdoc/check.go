package confdoc

import (
	"bytes"
	"os"
	"testing"
)

// Check fails the test if the file is not what Generate returned, and says where
// they part and what command brings the file up to date.
func Check(t testing.TB, file string, generated []byte, command string) {
	t.Helper()
	have, err := os.ReadFile(file)
	if err != nil {
		t.Errorf("%s cannot be read: %v; run: %s", file, err, command)
		return
	}
	if bytes.Equal(have, generated) {
		return
	}
	haveLines, wantLines := bytes.Split(have, []byte("\n")), bytes.Split(generated, []byte("\n"))
	line := func(lines [][]byte, i int) []byte {
		if i < len(lines) {
			return lines[i]
		}
		return []byte("(end of file)")
	}
	for i := range max(len(haveLines), len(wantLines)) {
		if h, w := line(haveLines, i), line(wantLines, i); !bytes.Equal(h, w) {
			t.Errorf("%s is out of date; run: %s\nfirst difference, line %d:\n  file:   %s\n  source: %s", file, command, i+1, h, w)
			return
		}
	}
}
