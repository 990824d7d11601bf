package main

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"weir/internal/clip"
	"weir/internal/flv"
	"weir/internal/media"
)

// door listens, gives each connection to serve, and closes it after that. It returns
// where, and how many came.
func door(t *testing.T, serve func(net.Conn)) (addr string, came func() int) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	n := 0
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			n++
			mu.Unlock()
			running.Go(func() {
				defer c.Close()
				serve(c)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		running.Wait()
	})
	return l.Addr().String(), func() int {
		mu.Lock()
		defer mu.Unlock()
		return n
	}
}

// silent reads until the client leaves.
func silent(c net.Conn) { io.Copy(io.Discard, c) }

// answering returns a server that answers an HTTP request with text, and then closes
// the connection or, if it is to stay, waits for the client to leave.
func answering(t *testing.T, text string, stays bool) string {
	addr, _ := door(t, func(c net.Conn) {
		r := bufio.NewReader(c)
		if _, err := http.ReadRequest(r); err != nil {
			return
		}
		io.WriteString(c, text)
		if stays {
			io.Copy(io.Discard, r)
		}
	})
	return "http://" + addr + "/live/x.flv"
}

// frames returns the clip up to its nth frame, and what of that is before the first.
func frames(t *testing.T, n int) (whole, headers string) {
	t.Helper()
	var b strings.Builder
	w, r := flv.NewWriter(&b), flv.NewReader(clip.Reader(), 0)
	for n > 0 {
		tag, err := r.ReadTag()
		if err != nil {
			t.Fatal(err)
		}
		if tag.Kind() != media.Data && !media.Sniff(tag.Kind(), tag.Body()).IsHeader() {
			if headers == "" {
				headers = b.String()
			}
			n--
		}
		if err := w.WriteTag(tag); err != nil {
			t.Fatal(err)
		}
	}
	return b.String(), headers
}

// However a pull ends, its last line says what has come, and its exit code why.
func TestPullOverHTTPEnds(t *testing.T) {
	const ok, chunked = "HTTP/1.1 200 OK\r\nContent-Type: video/x-flv\r\nConnection: close\r\n", "Transfer-Encoding: chunked\r\n\r\n"
	five, headers := frames(t, 5)
	chunk := func(s string) string { return strconv.FormatInt(int64(len(s)), 16) + "\r\n" + s + "\r\n" }
	f := func(name, answer string, stays bool, code int, stdout, stderr string, args ...string) {
		t.Helper()
		url := answering(t, answer, stays)
		gotCode, gotOut, gotErr := weir(append([]string{"pull", url}, args...)...)
		lines := func(got, want string) bool {
			return (got == "") == (want == "") && strings.Contains(got, want)
		}
		if gotCode != code || !lines(gotOut, stdout) || !lines(gotErr, stderr) {
			t.Errorf("%s: exit code %d, want %d; want %q and %q in\n%s\n%s", name, gotCode, code, stdout, stderr, gotOut, gotErr)
		}
		if stdout != "" && !strings.Contains(gotOut, "5 frames in ") {
			t.Errorf("%s: the last line does not say what has come:\n%s", name, gotOut)
		}
	}
	f("closed between tags", ok+"\r\n"+five, false, 0, "the server closed the connection", "")
	f("closed within a tag", ok+"\r\n"+five+five[13:30], false, exitLost, "5 frames", "unexpected EOF")
	f("chunks end", ok+chunked+chunk(five)+"0\r\n\r\n", false, 0, "the stream has ended", "")
	f("chunks do not end", ok+chunked+chunk(five), false, exitLost, "5 frames", "unexpected EOF")
	f("the time is over", ok+"\r\n"+five, true, 0, "5 frames", "", "--duration", "300ms")
	f("no frame", ok+"\r\n"+headers, false, exitRefused, "", "before a frame came")
	f("no frame in time", ok+"\r\n"+headers, true, exitConnect, "", "no frame came before --duration was over", "--duration", "300ms")
	f("no answer in time", "", true, exitConnect, "", "no answer before --duration was over", "--duration", "300ms")
	f("refused", "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", false, exitRefused, "", "404")
}

// A server that accepts and says nothing is one that gives no answer in time.
func TestNoAnswerOverRTMP(t *testing.T) {
	addr, _ := door(t, silent)
	file := filepath.Join(t.TempDir(), "clip.flv")
	if err := os.WriteFile(file, clip.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"pull", "rtmp://" + addr + "/live/x", "--duration", "200ms"},
		{"push", file, "rtmp://" + addr + "/live/x", "--duration", "200ms"},
	} {
		code, stdout, stderr := weir(args...)
		if code != exitConnect || stdout != "" || !strings.Contains(stderr, "no answer before --duration was over") {
			t.Errorf("weir %s: exit code %d\n%s\n%s", args[0], code, stdout, stderr)
		}
	}
}

// A file that cannot be published is refused before anybody is asked to take it.
func TestPushChecksTheFileFirst(t *testing.T) {
	addr, came := door(t, silent)
	_, headers := frames(t, 1)
	whole, _ := frames(t, 3)
	f := func(name, text, want string) {
		t.Helper()
		file := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		code, stdout, stderr := weir("push", file, "rtmp://"+addr+"/live/x", "--duration", "2s")
		if code != exitUsage || stdout != "" || !strings.Contains(stderr, file) || !strings.Contains(stderr, want) {
			t.Errorf("%s: exit code %d, want %d and %q\n%s\n%s", name, code, exitUsage, want, stdout, stderr)
		}
	}
	f("text", readFile(t, root+"/README.md"), "not an FLV stream")
	f("empty", "", "empty")
	f("header", whole[:13], "no audio and no video")
	f("headers", headers, "no audio and no video")
	f("cut", headers+whole[len(headers):len(headers)+20], "unexpected EOF")
	if n := came(); n != 0 {
		t.Errorf("%d connections were made", n)
	}
	if err := hasFrame([]byte(whole)); err != nil {
		t.Error(err)
	}
	if err := hasFrame(clip.Bytes()); err != nil {
		t.Error(err)
	}
}

// A push that never began does not say how much it sent.
func TestPushThatCannotConnect(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	file := filepath.Join(t.TempDir(), "clip.flv")
	if err := os.WriteFile(file, clip.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	code, stdout, stderr := weir("push", file, "rtmp://"+addr+"/live/x")
	if code != exitConnect || stdout != "" || !strings.Contains(stderr, addr) {
		t.Errorf("exit code %d\n%s\n%s", code, stdout, stderr)
	}
}
