package flv

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os/exec"
	"runtime"
	"runtime/debug"
	"slices"
	"testing"
	"testing/iotest"
	"unsafe"

	"weir/internal/media"
)

func tag(kind media.Kind, ms uint32, body string) media.Tag {
	t := media.NewTag(kind, ms, len(body))
	copy(t.Body(), body)
	return t
}

func sample() []media.Tag {
	return []media.Tag{
		tag(media.Data, 0, "\x02\x00\x0aonMetaData\x08\x00\x00\x00\x00\x00\x00\x09"),
		tag(media.Video, 0, "\x17\x00\x00\x00\x00avcC"),
		tag(media.Audio, 0, "\xaf\x00\x12\x10"),
		tag(media.Audio, 5, ""),
		tag(media.Video, 0xffffff, "\x17\x01\x00\x00\x00key"),
		tag(media.Video, 0x1000000, "\x27\x01\x00\x00\x00inter"),
		tag(media.Audio, 0xffffffff, "\xaf\x01x"),
	}
}

func file(tags ...media.Tag) []byte {
	b := Header(true, true)
	for _, t := range tags {
		b = append(b, t...)
	}
	return b
}

// readAll reads until the first error, which it returns.
func readAll(r io.Reader, maxBody int) ([]media.Tag, error) {
	fr := NewReader(r, maxBody)
	var tags []media.Tag
	for {
		t, err := fr.ReadTag()
		if err != nil {
			return tags, err
		}
		tags = append(tags, t)
	}
}

func sameTags(t *testing.T, got, want []media.Tag) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d tags, want %d", len(got), len(want))
	}
	for i := range want {
		if !bytes.Equal(got[i], want[i]) {
			t.Errorf("tag %d:\n got % x\nwant % x", i, []byte(got[i]), []byte(want[i]))
		}
	}
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	want := append(sample(), media.NewTag(media.Video, 9, 3*trusted+17), media.NewTag(media.Video, 10, media.MaxBodySize))
	for i := range want[len(want)-1] {
		if i >= media.TagHeaderSize && i < len(want[len(want)-1])-media.TagTrailerSize {
			want[len(want)-1][i] = byte(i * 7)
		}
	}
	var b bytes.Buffer
	w := NewWriter(&b)
	if b.Len() != 0 {
		t.Error("the writer wrote before the first tag")
	}
	for _, tag := range want {
		if err := w.WriteTag(tag); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(b.Bytes(), file(want...)) {
		t.Error("the file is not header and tags one after the other")
	}
	got, err := readAll(bytes.NewReader(b.Bytes()), 0)
	if err != io.EOF {
		t.Errorf("at the end: %v, want io.EOF itself", err)
	}
	sameTags(t, got, want)
}

func TestReadInAnyPortions(t *testing.T) {
	want := sample()
	for name, r := range map[string]io.Reader{
		"one byte":      iotest.OneByteReader(bytes.NewReader(file(want...))),
		"half":          iotest.HalfReader(bytes.NewReader(file(want...))),
		"data with EOF": iotest.DataErrReader(bytes.NewReader(file(want...))),
		"tiny buffer":   bufio.NewReaderSize(bytes.NewReader(file(want...)), 16),
	} {
		got, err := readAll(r, 0)
		if err != io.EOF {
			t.Errorf("%s: %v, want io.EOF", name, err)
		}
		sameTags(t, got, want)
	}
}

func TestCutAtEveryByte(t *testing.T) {
	want := sample()
	whole := file(want...)
	ends := map[int]int{HeaderSize: 0} // offset of the end of a tag → tags before it
	at := HeaderSize
	for i, tag := range want {
		at += len(tag)
		ends[at] = i + 1
	}
	for n := range len(whole) + 1 {
		got, err := readAll(bytes.NewReader(whole[:n]), 0)
		if count, clean := ends[n]; clean {
			if err != io.EOF || len(got) != count {
				t.Errorf("cut between tags at %d: %d tags and %v, want %d and io.EOF", n, len(got), err, count)
			}
		} else if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut inside at %d: %v, want io.ErrUnexpectedEOF", n, err)
		}
		sameTags(t, got, want[:len(got)])
	}
}

func TestBrokenReader(t *testing.T) {
	broken := errors.New("broken")
	whole := file(sample()...)
	for n := range len(whole) {
		_, err := readAll(io.MultiReader(bytes.NewReader(whole[:n]), iotest.ErrReader(broken)), 0)
		if !errors.Is(err, broken) {
			t.Fatalf("broken at %d: %v", n, err)
		}
	}
}

func TestFileHeaders(t *testing.T) {
	one := tag(media.Audio, 1, "\x2fx")
	f := func(name string, in []byte, wantErr error) {
		t.Helper()
		got, err := readAll(bytes.NewReader(in), 0)
		if !errors.Is(err, wantErr) {
			t.Errorf("%s: %v, want %v", name, err, wantErr)
		}
		if wantErr == io.EOF {
			sameTags(t, got, []media.Tag{one})
		} else if len(got) != 0 {
			t.Errorf("%s: %d tags", name, len(got))
		}
	}
	with := func(offset uint32, pad int) []byte {
		h := Header(true, true)[:9]
		binary.BigEndian.PutUint32(h[5:], offset)
		h = append(h, make([]byte, pad+4)...)
		return append(h, one...)
	}
	f("usual", with(9, 0), io.EOF)
	f("longer header", with(20, 11), io.EOF)
	f("longest header", with(1024, 1015), io.EOF)
	f("too long", with(1025, 1016), ErrNotFLV)
	f("hostile offset", with(0xffffffff, 0), ErrNotFLV)
	f("offset inside the header", with(8, 0), ErrNotFLV)
	f("offset 0", with(0, 0), ErrNotFLV)
	f("offset beyond the end", with(1000, 0), io.ErrUnexpectedEOF)
	f("another format", []byte("HTTP/1.1 404 Not Found\r\n\r\n"), ErrNotFLV)
	f("empty", nil, io.ErrUnexpectedEOF)

	for _, c := range []struct {
		audio, video bool
		flags        byte
	}{{false, false, 0}, {true, false, 4}, {false, true, 1}, {true, true, 5}} {
		h := Header(c.audio, c.video)
		want := []byte{'F', 'L', 'V', 1, c.flags, 0, 0, 0, 9, 0, 0, 0, 0}
		if !bytes.Equal(h, want) || len(h) != HeaderSize {
			t.Errorf("Header(%v, %v) = % x", c.audio, c.video, h)
		}
	}
}

func TestUnknownTagsArePassedOver(t *testing.T) {
	want := sample()
	big := media.NewTag(15, 0, 5<<20) // over the limit below: it takes no memory
	in := file(tag(1, 0, "x"), want[0], big, tag(0x1f, 9, ""), want[1], tag(15, 0, "amf3"))
	got, err := readAll(bytes.NewReader(in), 1000)
	if err != io.EOF {
		t.Error(err)
	}
	sameTags(t, got, want[:2])

	if _, err = readAll(bytes.NewReader(file(big)[:1000]), 0); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("cut in an unknown tag: %v", err)
	}
}

func TestEncryptedTagsAreRefused(t *testing.T) {
	enc := tag(media.Video, 0, "secret")
	enc[0] |= 0x20
	if _, err := readAll(bytes.NewReader(file(enc)), 0); !errors.Is(err, ErrNotFLV) {
		t.Errorf("got %v", err)
	}
}

func TestReaderRepairsWhatMuxersGetWrong(t *testing.T) {
	want := tag(media.Video, 77, "\x17\x01\x00\x00\x00x")
	in := bytes.Clone(want)
	copy(in[8:], "\x00\x00\x01")             // stream id
	copy(in[len(in)-4:], "\xde\xad\xbe\xef") // PreviousTagSize
	in[0] |= 0xc0                            // reserved bits
	got, err := readAll(bytes.NewReader(file(in)), 0)
	if err != io.EOF {
		t.Error(err)
	}
	sameTags(t, got, []media.Tag{want})
}

func TestBodyLimit(t *testing.T) {
	in := file(tag(media.Audio, 0, "12345"), tag(media.Audio, 0, "123456"))
	got, err := readAll(bytes.NewReader(in), 5)
	if len(got) != 1 || !errors.Is(err, ErrTagTooLarge) {
		t.Errorf("%d tags and %v, want 1 and ErrTagTooLarge", len(got), err)
	}
}

// A header that claims 16 MiB and is followed by little must not cost 16 MiB.
func TestMemoryGrowsWithWhatArrives(t *testing.T) {
	hostile := tag(media.Video, 0, "")[:media.TagHeaderSize]
	hostile[1], hostile[2], hostile[3] = 0xff, 0xff, 0xff
	f := func(arrived int, atMost uint64) {
		t.Helper()
		in := append(file(hostile), make([]byte, arrived)...)
		const runs = 8
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range runs {
			if _, err := readAll(bytes.NewReader(in), 0); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatal(err)
			}
		}
		runtime.ReadMemStats(&after)
		if used := (after.TotalAlloc - before.TotalAlloc) / runs; used > atMost {
			t.Errorf("%d bytes arrived and %d were allocated, want at most %d", arrived, used, atMost)
		}
	}
	f(0, trusted+64<<10)
	f(1000, trusted+64<<10)
	f(trusted, 4*trusted)
	f(1<<20, 8<<20) // all the steps of doubling together
}

func TestOneAllocationPerLargeTag(t *testing.T) {
	body := tag(media.Video, 0, string(make([]byte, 100<<10)))
	in := file()
	const n = 200
	for range n + 50 {
		in = append(in, body...)
	}
	r := NewReader(bytes.NewReader(in), 0)
	got := testing.AllocsPerRun(n, func() {
		if _, err := r.ReadTag(); err != nil {
			t.Fatal(err)
		}
	})
	if got != 1 {
		t.Errorf("%v allocations per tag, want 1", got)
	}
	w := NewWriter(io.Discard)
	_ = w.WriteTag(body)
	if got := testing.AllocsPerRun(n, func() { _ = w.WriteTag(body) }); got != 0 {
		t.Errorf("%v allocations per tag written, want 0", got)
	}
}

// log is a reader's tags, the newest of which are in use.
type log struct {
	t      testing.TB
	gone   func(media.Tag, bool)
	tags   []media.Tag
	copies []media.Tag // of tags
}

// add takes a tag in, and gives the memory of the oldest of more than size back.
func (l *log) add(tag media.Tag, size int) {
	l.t.Helper()
	l.tags, l.copies = append(l.tags, tag), append(l.copies, slices.Clone(tag))
	if len(l.tags) <= size {
		return
	}
	if !bytes.Equal(l.tags[0], l.copies[0]) {
		l.t.Fatal("a tag in use was overwritten")
	}
	l.gone(l.tags[0], true)
	l.tags, l.copies = l.tags[1:], l.copies[1:]
}

// Tags are read into the memory of those that are gone.
func TestReadIntoUsedMemory(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // which has memory used again, too
	r := rand.New(rand.NewPCG(1, 2))
	var want []media.Tag
	in := file()
	for n := range 5000 {
		body := make([]byte, r.IntN(2000))
		switch n % 100 {
		case 7, 8:
			body = make([]byte, r.IntN(60_000))
		case 50:
			body = make([]byte, r.IntN(2*trusted))
		}
		for i := range body {
			body[i] = byte(n + i)
		}
		want = append(want, tag([]media.Kind{media.Audio, media.Video, media.Data}[r.IntN(3)], uint32(n), string(body)))
		in = append(in, want[n]...)
	}
	fr := NewReader(bytes.NewReader(in), 0)
	l := log{t: t, gone: fr.Gone}
	pages, size := map[uintptr]bool{}, 0 // of small tags
	for n, w := range want {
		got, err := fr.ReadTag()
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, w) {
			t.Fatalf("tag %d of %d bytes is not what was sent", n, len(w))
		}
		if len(w) < 2000 {
			pages[uintptr(unsafe.Pointer(&got[0]))/4096] = true
			size += len(w)
		}
		l.add(got, 100)
	}
	if most := size / 4096 / 2; len(pages) > most {
		t.Errorf("tags of %d bytes are in %d pages of 4 KB, want at most %d", size, len(pages), most)
	}
}

// Reading takes no memory when what is read goes as it came.
func TestNoAllocations(t *testing.T) {
	body := tag(media.Video, 0, string(make([]byte, 5000)))
	r := NewReader(io.MultiReader(bytes.NewReader(file()), bytes.NewReader(bytes.Repeat(body, 10_000))), 0)
	var tags [100]media.Tag
	n := 0
	read := func() {
		for range 1000 {
			at := n % len(tags)
			if tags[at] != nil {
				r.Gone(tags[at], true)
			}
			var err error
			if tags[at], err = r.ReadTag(); err != nil {
				t.Fatal(err)
			}
			n++
		}
	}
	read()
	if got := testing.AllocsPerRun(7, read); got != 0 {
		t.Errorf("%v allocations for 1000 tags", got)
	}
}

// failing fails at the nth write.
type failing struct{ n int }

func (f *failing) Write(b []byte) (int, error) {
	if f.n--; f.n < 0 {
		return 0, io.ErrClosedPipe
	}
	return len(b), nil
}

func TestWriterReportsErrors(t *testing.T) {
	for n := range 3 {
		w := NewWriter(&failing{n})
		var err error
		for range n + 1 {
			err = w.WriteTag(tag(media.Audio, 0, "x"))
		}
		if !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("write %d fails: %v", n, err)
		}
	}
}

// TestFFmpegFile reads what ffmpeg writes, compares it with ffmpeg's own count of
// packets, and has ffmpeg decode what the writer made of it.
func TestFFmpegFile(t *testing.T) {
	for _, tool := range []string{"ffmpeg", "ffprobe"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%v (apt-get install ffmpeg)", err)
		}
	}
	run := func(stdin io.Reader, name string, args ...string) []byte {
		t.Helper()
		cmd := exec.Command(name, args...)
		var out, errs bytes.Buffer
		cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &out, &errs
		if err := cmd.Run(); err != nil {
			t.Fatalf("%s: %v\n%s", name, err, errs.Bytes())
		}
		return out.Bytes()
	}
	made := run(nil, "ffmpeg", "-v", "error", "-f", "lavfi", "-i", "testsrc=size=160x90:rate=25:duration=2",
		"-f", "lavfi", "-i", "sine=duration=2", "-c:v", "libx264", "-preset", "ultrafast", "-g", "25", "-bf", "2",
		"-c:a", "aac", "-flvflags", "no_duration_filesize", "-f", "flv", "-")

	tags, err := readAll(bytes.NewReader(made), 1<<20)
	if err != io.EOF {
		t.Fatal(err)
	}
	got := map[string]int{}
	for _, tag := range tags {
		i := media.Sniff(tag.Kind(), tag.Body())
		switch {
		case i.Has(media.Malformed):
			t.Errorf("malformed tag % x", []byte(tag))
		case i.IsHeader():
			got[i.Kind.String()+" header "+i.Codec.String()]++
		case i.Has(media.EndOfSequence):
			got["end"]++
		default:
			got[i.Kind.String()]++
			if i.IsKeyFrame() {
				got["key"]++
			}
		}
	}
	want := map[string]int{
		"data header unknown": 1, "video header H.264": 1, "audio header AAC": 1, "end": 1, "video": 50, "key": 2,
	}
	count := run(bytes.NewReader(made), "ffprobe", "-v", "error", "-count_packets", "-select_streams", "a",
		"-show_entries", "stream=nb_read_packets", "-of", "csv=p=0", "-f", "flv", "-")
	var audio int
	if _, err := fmt.Sscan(string(count), &audio); err != nil {
		t.Fatalf("ffprobe counted %q: %v", count, err)
	}
	want["audio"] = audio
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("tags:\n got %v\nwant %v", got, want)
	}

	var b bytes.Buffer
	w := NewWriter(&b)
	for _, tag := range tags {
		if err := w.WriteTag(tag); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(b.Bytes(), made) {
		t.Error("the file written again differs from ffmpeg's")
	}
	sums := run(&b, "ffmpeg", "-v", "error", "-xerror", "-f", "flv", "-i", "-", "-f", "framemd5", "-")
	if n := bytes.Count(sums, []byte("\n0, ")); n != 50 {
		t.Errorf("ffmpeg decoded %d pictures, want 50", n)
	}
}

func FuzzReadTag(f *testing.F) {
	f.Add(file(sample()...))
	f.Add(file())
	f.Add([]byte("FLV\x01\x05\x00\x00\x04\x00"))
	f.Add(file(tag(15, 0, "amf3"), tag(media.Audio, 1, "x")))
	hostile := file(sample()[0])
	hostile[HeaderSize+1] = 0xff
	f.Add(hostile)
	f.Fuzz(func(t *testing.T, in []byte) {
		const maxBody = 1 << 16
		tags, err := readAll(bytes.NewReader(in), maxBody)
		if err == nil {
			t.Fatal("no end")
		}
		total := 0
		for _, g := range tags {
			total += len(g)
			if len(g.Body()) > maxBody {
				t.Fatalf("body of %d bytes", len(g.Body()))
			}
		}
		if total > len(in) {
			t.Fatalf("%d bytes of tags from %d of input", total, len(in))
		}
		again := NewReader(bytes.NewReader(file(tags...)), maxBody)
		l := log{t: t, gone: again.Gone}
		for i, want := range tags {
			got, err := again.ReadTag()
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("reading what was read: tag %d of %d bytes, %v", i, len(want), err)
			}
			l.add(got, 3)
		}
		if _, err := again.ReadTag(); err != io.EOF {
			t.Fatalf("reading what was read: %v at the end", err)
		}
	})
}

// loop reads b over and over.
type loop struct {
	b  []byte
	at int
}

func (r *loop) Read(p []byte) (int, error) {
	n := copy(p, r.b[r.at:])
	if r.at += n; r.at == len(r.b) {
		r.at = 0
	}
	return n, nil
}

// BenchmarkReadTag reads tags of which the last hundred are kept, and the memory of the
// others is used again or not.
func BenchmarkReadTag(b *testing.B) {
	body := tag(media.Video, 0, string(make([]byte, 10<<10)))
	for _, name := range []string{"used again", "left behind"} {
		b.Run(name, func(b *testing.B) {
			r := NewReader(io.MultiReader(bytes.NewReader(Header(true, true)), &loop{b: body}), 0)
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			var tags [100]media.Tag
			for n := 0; b.Loop(); n++ {
				at := n % len(tags)
				if tags[at] != nil && name == "used again" {
					r.Gone(tags[at], true)
				}
				var err error
				if tags[at], err = r.ReadTag(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
