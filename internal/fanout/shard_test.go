package fanout

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"weir/internal/media"
	"weir/internal/stream"
)

const testChunk = 4096

// formats are all there are, with parsers of what players get.
var formats = []struct {
	name  string
	f     Format
	parse func(b []byte) ([]media.Tag, error)
}{
	{"FLV", FLV{}, func(b []byte) ([]media.Tag, error) {
		_, tags, err := parseFLV(b)
		return tags, err
	}},
	{"WebSocket", WebSocketFLV{}, func(b []byte) ([]media.Tag, error) {
		frames, err := parseWebSocket(b)
		if err != nil {
			return nil, err
		}
		var body []byte
		for _, f := range frames {
			if f.opcode == 2 {
				body = append(body, f.data...)
			}
		}
		_, tags, err := parseFLV(body)
		return tags, err
	}},
	{"RTMP", RTMP{StreamID: 1, ChunkSize: testChunk}, func(b []byte) ([]media.Tag, error) {
		tags, _, err := parseRTMP(b, 1, testChunk)
		return tags, err
	}},
}

// gets fails unless a player got whole frames of the log, and returns how many it lost.
func (s *source) gets(t testing.TB, format int, b []byte) (lost int, tags []media.Tag) {
	t.Helper()
	tags, err := formats[format].parse(b)
	if err != nil {
		t.Fatalf("%s: %v", formats[format].name, err)
	}
	lost, err = s.verify(tags)
	if err != nil {
		t.Fatalf("%s: %v", formats[format].name, err)
	}
	return lost, tags
}

// A socket takes the first n bytes of a block and is full, for every n: of what a
// player gets first, and of what it gets later. The player's goroutine does the
// rest and gives the player back; nothing is missing, doubled, or out of order.
func TestSocketFillsAtEveryByte(t *testing.T) {
	for i, format := range formats {
		t.Run(format.name, func(t *testing.T) {
			for cut, sizes := 0, (map[int]int{}); ; cut++ { // sizes of the sends
				over := true
				inBubble(t, 0, func(t *testing.T, e *Engine, n *sockets) {
					send := 0
					f := func(_ *socket, b []byte) int {
						sizes[send] = len(b)
						if cut <= len(b) {
							over = false
						}
						send++
						return cut
					}
					n.asOf.Store(&f)
					s := newSource(t)
					s.headers(0)
					s.frame('K', 0, 20)
					s.frame('A', 10, 3)
					p, k := s.joinSocket(e, n, plenty, format.f, roomy)
					synctest.Wait()
					if p.at() != sharded {
						t.Fatalf("cut at %d: the player was not given back", cut)
					}
					s.headers(40)
					s.frame('P', 40, 30)
					synctest.Wait()
					s.frame('A', 60, 5)
					synctest.Wait()
					if p.at() != sharded || cut == 0 && k.writes.Load() < 3 {
						t.Fatalf("cut at %d: place %d, %d writes of the goroutine", cut, p.at(), k.writes.Load())
					}
					got := k.seen()
					if lost, tags := s.gets(t, i, got); lost != 0 || len(tags) != len(s.all) {
						t.Fatalf("cut at %d: %d of %d tags, lost %d", cut, len(tags), len(s.all), lost)
					}
					if p.Bytes() != uint64(len(got)) || p.Skipped() != 0 {
						t.Fatalf("cut at %d: counted %d bytes of %d, %d skipped", cut, p.Bytes(), len(got), p.Skipped())
					}
				})
				if over {
					if len(sizes) < 3 || sizes[0] < 100 {
						t.Errorf("sends of %v bytes", sizes)
					}
					return
				}
			}
		})
	}
}

// The same for blocks of many pieces, around each end of one.
func TestSocketFillsAroundPieces(t *testing.T) {
	for i, format := range formats {
		t.Run(format.name, func(t *testing.T) {
			story := func(cut int) (ends []int, size int) {
				inBubble(t, 120*time.Millisecond, func(t *testing.T, e *Engine, n *sockets) {
					first := true
					f := func(_ *socket, b []byte) int {
						defer func() { first = false }()
						switch {
						case !first:
							return len(b)
						case cut < 0:
							for g := range e.shards[0].groups {
								ends = append(ends, e.shards[0].groups[g].opening.holding(0).end)
							}
							for _, p := range e.shards[0].list[0].opening.pieces[1:] {
								ends = append(ends, p.end)
							}
							size = len(b)
							return size
						}
						return cut
					}
					n.asOf.Store(&f)
					s := newSource(t)
					s.headers(0)
					s.frame('K', 0, 90000)
					for ms := 20; ms < 800; ms += 20 {
						s.frame('P', ms, 3000)
						if ms == 400 {
							s.headers(ms + 1)
						}
					}
					p, k := s.joinSocket(e, n, plenty, format.f, roomy)
					synctest.Wait()
					s.frame('P', 800, 10)
					pass(time.Second)
					if lost, tags := s.gets(t, i, k.seen()); lost != 0 || len(tags) != len(s.all) || p.at() != sharded {
						t.Fatalf("cut at %d: %d of %d tags, lost %d, place %d", cut, len(tags), len(s.all), lost, p.at())
					}
				})
				return ends, size
			}
			ends, size := story(-1)
			if len(ends) < 4 || ends[len(ends)-1] != size {
				t.Fatalf("pieces end at %v of %d", ends, size)
			}
			for _, end := range ends {
				for _, cut := range []int{end - 1, end, end + 1} {
					story(cut)
				}
			}
		})
	}
}

// alice's socket is full; bob must not notice. alice jumps to the newest key frame
// as soon as the tags are over that she is in the middle of, catches up, and is
// given back; what she lost is counted. Over and over.
func TestSlowPlayerOfAShard(t *testing.T) {
	for i, format := range formats {
		t.Run(format.name, func(t *testing.T) {
			inBubble(t, 0, func(t *testing.T, e *Engine, n *sockets) {
				s := newSource(t)
				s.headers(0)
				s.frame('K', 0, 1000)
				limits := Limits{MaxLag: 2 * time.Second, WriteTimeout: time.Hour}
				alice, slow := s.joinSocket(e, n, 5000, format.f, limits)
				bob, fast := s.joinSocket(e, n, plenty, format.f, limits)
				synctest.Wait()
				lost, ms := 0, 1000
				for round := range 5 {
					for range 6 {
						if ms += 1000; ms == 9000 {
							s.headers(ms)
						}
						s.group(ms, 2000)
						synctest.Wait()
					}
					if alice.at() != chased || bob.at() != sharded {
						t.Fatalf("round %d: alice at %d, bob at %d", round, alice.at(), bob.at())
					}
					if _, tags := s.gets(t, i, fast.seen()); len(tags) != len(s.all) {
						t.Fatalf("round %d: bob has %d of %d tags", round, len(tags), len(s.all))
					}
					slow.drain(300_000) // the rest of where she is, and a group
					synctest.Wait()
					if alice.at() != sharded {
						t.Fatalf("round %d: alice was not given back", round)
					}
					slow.change(func() { slow.room = 7000 + round*1111 })
					var tags []media.Tag
					lost, tags = s.gets(t, i, slow.seen())
					if number(tags[len(tags)-1]) != len(s.frames)-1 {
						t.Fatalf("round %d: alice's last frame is %d of %d", round, number(tags[len(tags)-1]), len(s.frames))
					}
				}
				headers := uint64(3) // passed over with the frames
				if lost < 5*4*50 || alice.Skipped() != uint64(lost)+headers || bob.Skipped() != 0 {
					t.Errorf("alice lost %d, counted %d; bob counted %d", lost, alice.Skipped(), bob.Skipped())
				}
				if alice.Bytes() != uint64(len(slow.seen())) {
					t.Errorf("counted %d bytes, sent %d", alice.Bytes(), len(slow.seen()))
				}
			})
		})
	}
}

// Whatever players do, nobody has tags of the log while nothing is sent: the memory of all
// that leave it is used again.
func TestNobodyKeepsTags(t *testing.T) {
	inBubble(t, 0, func(t *testing.T, e *Engine, n *sockets) {
		s := newSourceWith(t, stream.Limits{MaxBytes: 64 << 20, MaxTime: 1500 * time.Millisecond})
		dropped := 0
		s.p.Recycle(func(tag media.Tag, unused bool) {
			if dropped++; !unused {
				t.Errorf("frame %d: somebody has tags", len(s.frames))
			}
			s.slab.Gone(tag, unused)
		})
		flow := func(ms int) {
			for i := range 10 {
				s.frame("KPPPP"[i%5], ms+100*i, 3000)
				synctest.Wait()
				s.frame('A', ms+100*i, 100)
				synctest.Wait()
			}
		}
		s.headers(0)
		flow(0)
		limits, ms := Limits{MaxLag: time.Second, WriteTimeout: time.Hour}, 0
		for _, f := range formats {
			for range 2 { // the second gets the opening of the first
				s.joinSocket(e, n, plenty, f.f, limits)
			}
			_, slow := s.joinSocket(e, n, 5000, f.f, limits)
			_, stuck := s.joinSocket(e, n, 5000, f.f, limits)
			paused, _ := s.joinSocket(e, n, plenty, f.f, limits)
			muted, _ := s.joinSocket(e, n, plenty, f.f, limits)
			deaf, _ := s.joinSocket(e, n, plenty, f.f, limits)
			plain := s.join(e, f.f, limits)
			go func() { _, _ = io.Copy(io.Discard, plain.far) }()
			defer plain.far.Close()
			for second := range 12 {
				ms += 1000
				switch second {
				case 2:
					s.headers(ms)
					paused.Pause(true)
					muted.Mute(media.Video, true)
					deaf.Mute(media.Video, true)
					deaf.Mute(media.Audio, true)
				case 5:
					paused.Pause(false)
				case 8:
					muted.Mute(media.Video, false)
					stuck.drain(plenty)
				case 10:
					paused.End(Left)
					stuck.leave()
				}
				slow.drain(20_000)
				synctest.Wait()
				flow(ms)
			}
		}
		s.s.Close(nil)
		synctest.Wait()
		if dropped < 500 {
			t.Errorf("only %d tags have left the log", dropped)
		}
	})
}

// A shard has nothing of a stream between rounds.
func TestRoundsKeepNothing(t *testing.T) {
	b := newBench(t, FLV{}, 2)
	for _, f := range []func(){func() {}, b.publish, func() {}} {
		f()
		b.shard.round(0)
		if b.shard.reading != nil || b.shard.entries[0].Tag != nil || len(b.shard.tags) > 0 {
			t.Errorf("a shard keeps %v and %d tags", b.shard.reading, len(b.shard.tags))
		}
	}
}

// A player whose socket fills with what it gets first need not take all of that
// before it jumps: only the rest of a piece.
func TestSlowJoinerJumps(t *testing.T) {
	for i, format := range formats {
		t.Run(format.name, func(t *testing.T) {
			inBubble(t, 0, func(t *testing.T, e *Engine, n *sockets) {
				s := newSource(t)
				s.headers(0)
				s.group(0, 100_000) // 2.5 MB that players begin with
				p, k := s.joinSocket(e, n, 1000, format.f, Limits{MaxLag: time.Second, WriteTimeout: time.Hour})
				synctest.Wait()
				for ms := 1000; ms < 5000; ms += 1000 {
					s.group(ms, 1000)
				}
				k.drain(250_000)
				synctest.Wait()
				lost, tags := s.gets(t, i, k.seen())
				if last := number(tags[len(tags)-1]); last != len(s.frames)-1 || lost < 170 || p.Skipped() != uint64(lost) {
					t.Errorf("lost %d, counted %d, last frame %d of %d", lost, p.Skipped(), last, len(s.frames))
				}
			})
		})
	}
}

func TestSlowPlayerOfAShardIsCut(t *testing.T) {
	inBubble(t, 0, func(t *testing.T, e *Engine, n *sockets) {
		s := newSource(t)
		s.headers(0)
		s.frame('K', 0, 1000)
		p, k := s.joinSocket(e, n, 500, FLV{}, Limits{MaxLag: time.Second, WriteTimeout: 10 * time.Second})
		begin := time.Now()
		pass(9 * time.Second)
		k.drain(1) // progress
		r := p.result2()
		if took := time.Since(begin); r.Reason != TooSlow || r.Err == nil || took < 19*time.Second || took > 20*time.Second || !k.isClosed() {
			t.Errorf("%+v after %v", r, took)
		}
		if r.Bytes != 501 {
			t.Errorf("counted %d bytes", r.Bytes)
		}
	})
}

// A player that was given back knows no deadline any more.
func TestNoDeadlineIsLeftBehind(t *testing.T) {
	inBubble(t, 0, func(t *testing.T, e *Engine, n *sockets) {
		s := newSource(t)
		s.headers(0)
		s.frame('K', 0, 1000)
		p, k := s.joinSocket(e, n, 500, FLV{}, Limits{MaxLag: time.Second, WriteTimeout: time.Second})
		synctest.Wait()
		k.drain(plenty)
		synctest.Wait()
		k.mu.Lock()
		late := k.late
		k.mu.Unlock()
		if p.at() != sharded || !late.IsZero() {
			t.Errorf("place %d, deadline %v", p.at(), late)
		}
	})
}

// The log drops what a slow player would get next and has no join point: a group
// of pictures that is larger than the log. The player waits for the next key
// frame, in whatever way it is served.
func TestNoJoinPointToGoOnAt(t *testing.T) {
	for i, format := range formats {
		t.Run(format.name, func(t *testing.T) {
			inBubble(t, 0, func(t *testing.T, e *Engine, n *sockets) {
				s := newSourceWith(t, stream.Limits{MaxBytes: 64 << 10, MaxTime: 8 * time.Second})
				s.headers(0)
				s.frame('K', 0, 1000)
				p, k := s.joinSocket(e, n, 500, format.f, roomy)
				q, fast := s.joinSocket(e, n, plenty, format.f, roomy)
				synctest.Wait()
				ms := 0
				for range 40 {
					ms += 40
					s.frame('P', ms, 4000)
					synctest.Wait()
				}
				k.drain(plenty)
				synctest.Wait()
				rounds := n.rounds.Load()
				for range 5 {
					ms += 40
					s.frame('P', ms, 4000)
					synctest.Wait()
				}
				if n.rounds.Load() > rounds+10 {
					t.Errorf("%d rounds for 5 frames", n.rounds.Load()-rounds)
				}
				late, latest := s.joinSocket(e, n, plenty, format.f, roomy)
				s.headers(ms + 20)
				synctest.Wait()
				s.frame('K', ms+40, 100)
				s.frame('P', ms+80, 100)
				synctest.Wait()
				lost, tags := s.gets(t, i, k.seen())
				if lost != 45 || number(tags[len(tags)-1]) != 47 || p.at() != sharded {
					t.Errorf("lost %d, last frame %d, place %d", lost, number(tags[len(tags)-1]), p.at())
				}
				if p.Skipped() != 45+3 || q.Skipped() != 0 || late.Skipped() != 0 {
					t.Errorf("counted %d, %d, %d", p.Skipped(), q.Skipped(), late.Skipped())
				}
				if n.lagged.Load() > 0 || n.passed.Load() == 0 {
					t.Errorf("counted %d jumps for lag, %d because of the log", n.lagged.Load(), n.passed.Load())
				}
				if lost, _ := s.gets(t, i, fast.seen()); lost != 0 {
					t.Errorf("the fast player lost %d", lost)
				}
				if _, tags := s.gets(t, i, latest.seen()); len(tags) != 5 {
					t.Errorf("the latest player got %d tags", len(tags))
				}
			})
		})
	}
}

// A shard is held up for longer than the log reaches back: all its players go on
// at the next key frame, and are told once each what they lost.
func TestGroupFallsBehindItsLog(t *testing.T) {
	for _, keyed := range []bool{true, false} { // the log has a join point when the shard comes back
		t.Run(fmt.Sprint("keyed=", keyed), func(t *testing.T) {
			inBubble(t, 100*time.Millisecond, func(t *testing.T, e *Engine, n *sockets) {
				s := newSourceWith(t, stream.Limits{MaxBytes: 64 << 10, MaxTime: 8 * time.Second})
				s.headers(0)
				s.frame('K', 0, 1000)
				p, k := s.joinSocket(e, n, plenty, FLV{}, roomy)
				full, stuck := s.joinSocket(e, n, 100, FLV{}, roomy)
				synctest.Wait()
				// One send takes as long as the publisher needs for much.
				held, free := make(chan bool), make(chan bool)
				f := func(at *socket, b []byte) int {
					if at == k {
						held <- true
						<-free
						n.asOf.Store(nil)
					}
					return len(b)
				}
				n.asOf.Store(&f)
				s.frame('P', 40, 10)
				<-held
				ms := 40
				for i := range 60 {
					ms += 40
					if keyed && i == 55 {
						s.headers(ms)
						s.frame('K', ms, 100)
					} else {
						s.frame('P', ms, 3000)
					}
				}
				free <- true
				synctest.Wait()
				stuck.drain(plenty)
				pass(time.Second)
				for range 3 {
					ms += 40
					s.frame('P', ms, 100)
					pass(time.Second)
				}
				s.frame('K', ms+40, 100)
				s.frame('P', ms+80, 100)
				pass(time.Second)
				if n.lagged.Load() > 0 || n.passed.Load() < 2 {
					t.Errorf("counted %d jumps for lag, %d because of the log", n.lagged.Load(), n.passed.Load())
				}
				for name, k := range map[*player]*socket{p: k, full: stuck} {
					lost, tags := s.gets(t, 0, k.seen())
					counted := name.Skipped()
					if keyed {
						counted -= 3 // headers
					}
					if lost < 50 || counted != uint64(lost) || number(tags[len(tags)-1]) != len(s.frames)-1 || name.at() != sharded {
						t.Errorf("lost %d, counted %d, last frame %d of %d, place %d", lost, counted, number(tags[len(tags)-1]), len(s.frames), name.at())
					}
				}
			})
		})
	}
}

// Players come while blocks are made and sent: each gets contiguous tags from a
// key frame on, with the headers that hold there.
func TestJoinersWhileTheStreamFlows(t *testing.T) {
	for i, format := range formats {
		t.Run(format.name, func(t *testing.T) {
			inBubble(t, 100*time.Millisecond, func(t *testing.T, e *Engine, n *sockets) {
				s := newSource(t)
				type pair struct {
					*player
					k     *socket
					since int
				}
				var all []pair
				join := func() {
					p, k := s.joinSocket(e, n, plenty, format.f, roomy)
					all = append(all, pair{p, k, len(s.frames)})
				}
				// From within a send: the shard is in the middle of a flush.
				within := make(chan bool)
				ask := make(chan bool)
				f := func(_ *socket, b []byte) int {
					select {
					case <-ask:
						within <- true
						<-within
					default:
					}
					return len(b)
				}
				n.asOf.Store(&f)
				join() // the first comes before the publisher
				synctest.Wait()
				for sec := range 12 {
					if sec%4 == 0 {
						s.headers(1000 * sec)
					}
					for frame := range 25 {
						what := byte('P')
						if frame == 0 {
							what = 'K'
						}
						s.frame(what, 1000*sec+40*frame, 500)
						pass(13 * time.Millisecond)
						if frame%9 == 5 {
							join()
						}
					}
					select {
					case ask <- true:
						<-within
						join()
						s.frame('A', 1000*sec+970, 10)
						join()
						s.headers(1000*sec + 980)
						s.frame('P', 1000*sec+990, 10)
						join()
						within <- true
					case <-time.After(time.Second):
					}
				}
				pass(time.Second)
				for _, p := range all {
					lost, tags := s.gets(t, i, p.k.seen())
					frames := 0
					first := -1
					for _, tag := range tags {
						if isFrame(tag) {
							if frames++; first < 0 {
								first = number(tag)
							}
						}
					}
					if lost > 0 || first+frames != len(s.frames) || first > p.since || p.Skipped() > 0 {
						t.Errorf("joined at %d: frames %d+%d of %d, %d skipped", p.since, first, frames, len(s.frames), p.Skipped())
					}
				}
				if _, tags := s.gets(t, i, all[0].k.seen()); len(tags) != len(s.all) {
					t.Errorf("who came before the publisher got %d of %d tags", len(tags), len(s.all))
				}
			})
		})
	}
}

// What is asked of a session is done wherever the session is.
func TestWishesInEveryPlace(t *testing.T) {
	pong := []byte{0x8a, 0}
	places := []struct {
		name string
		room int
		want place
		prep func(s *source, p *player, k *socket)
	}{
		{"waiting", plenty, sharded, func(*source, *player, *socket) {}},
		{"healthy", plenty, sharded, func(s *source, _ *player, _ *socket) { s.headers(0); s.frame('K', 0, 100) }},
		{"chased", 50, chased, func(s *source, _ *player, _ *socket) { s.headers(0); s.frame('K', 0, 100) }},
		{"paused", plenty, chased, func(s *source, p *player, _ *socket) { s.headers(0); s.frame('K', 0, 100); p.Pause(true) }},
		{"arriving", plenty, sharded, nil},
	}
	for _, at := range places {
		for _, act := range []struct {
			name string
			do   func(e *Engine, s *source, p *player)
			want Reason
		}{
			{"end", func(_ *Engine, _ *source, p *player) { p.End(Kicked); p.End(Left) }, Kicked},
			{"end gently", func(_ *Engine, _ *source, p *player) { p.Inject(pong); p.EndGently(Left); p.EndGently(Kicked) }, Left},
			{"engine", func(e *Engine, _ *source, _ *player) { e.Close() }, Shutdown},
			{"stream", func(_ *Engine, s *source, _ *player) { s.s.Close(nil) }, Ended},
			{"goes on", func(_ *Engine, s *source, p *player) {
				p.Inject(pong)
				p.Pause(true)
				p.Mute(media.Video, true)
				p.Mute(media.Audio, true)
				s.frame('P', 40, 10)
				p.Mute(media.Video, false)
				p.Pause(false)
				p.Mute(media.Audio, false)
			}, ""},
		} {
			t.Run(at.name+"/"+act.name, func(t *testing.T) {
				inBubble(t, 0, func(t *testing.T, e *Engine, n *sockets) {
					s := newSource(t)
					p, k := s.joinSocket(e, n, at.room, WebSocketFLV{}, roomy)
					if at.prep != nil {
						synctest.Wait()
						at.prep(s, p, k)
						synctest.Wait()
						if p.at() != at.want {
							t.Fatalf("the session is at %d", p.at())
						}
					}
					e2 := make(chan bool) // Close waits for the player
					go func() { act.do(e, s, p); close(e2) }()
					synctest.Wait()
					k.drain(plenty - at.room)
					<-e2
					if act.want == "" {
						synctest.Wait()
						s.headers(1000)
						s.frame('K', 1000, 10)
						s.frame('P', 1040, 10)
						s.frame('A', 1050, 10)
						synctest.Wait()
						if p.at() != sharded {
							t.Errorf("the session is at %d", p.at())
						}
						_, tags := s.gets(t, 1, k.seen())
						if number(tags[len(tags)-1]) != len(s.frames)-1 || !isKey(tags[len(tags)-3]) {
							t.Errorf("the last frame is %d of %d", number(tags[len(tags)-1]), len(s.frames))
						}
						p.End(Left)
					}
					r := p.result2()
					if want := act.want; want != "" && r.Reason != want || !k.isClosed() || r.Bytes != uint64(len(k.seen())) || r.Skipped > 0 {
						t.Errorf("%+v, closed %v after %d bytes", r, k.isClosed(), len(k.seen()))
					}
					if act.want != "" && act.want != Ended && r.Err != nil {
						t.Errorf("error of a session that was ended: %v", r.Err)
					}
					if got := k.seen(); act.name == "end gently" && !bytes.HasSuffix(got, pong) {
						t.Errorf("no answer at the end of %x", got)
					}
					p.End(Left) // too late
					p.EndGently(Left)
					p.Inject(pong)
					p.Pause(true)
					p.Mute(media.Audio, true)
					synctest.Wait()
					if len(p.done) > 0 || e.Len() > 0 {
						t.Error("Done was called twice, or the session is still there")
					}
				})
			})
		}
	}
}

// A group without players is forgotten, with its stream, also when nothing else
// happens at the shard; with the next player it is there again.
func TestEmptyGroupsAreDropped(t *testing.T) {
	ends := map[string]func(s *source, p *player, k *socket){
		"ended":    func(_ *source, p *player, _ *socket) { p.End(Left) },
		"paused":   func(_ *source, p *player, _ *socket) { p.Pause(true); synctest.Wait(); p.End(Left) },
		"gone":     func(s *source, _ *player, k *socket) { k.leave(); s.frame('P', 5000, 1) },
		"stream":   func(s *source, _ *player, _ *socket) { s.s.Close(nil) },
		"too slow": func(s *source, _ *player, k *socket) { k.change(func() { k.room = 0 }); s.frame('P', 5000, 1) },
	}
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			inBubble(t, 100*time.Millisecond, func(t *testing.T, e *Engine, n *sockets) {
				for range 3 {
					s := newSource(t)
					s.headers(0)
					s.frame('K', 0, 10)
					for range 2 {
						if name == "stream" && s.p.Append(media.NewTag(media.Audio, 1, 2)) != nil {
							break
						}
						p, k := s.joinSocket(e, n, plenty, FLV{}, Limits{MaxLag: time.Hour, WriteTimeout: time.Second})
						pass(3 * time.Second)
						if n.state.Load().groups != 1 {
							t.Fatalf("%d groups", n.state.Load().groups)
						}
						s.gets(t, 0, k.seen())
						end(s, p, k)
						p.result2()
						pass(time.Second)
						if n.state.Load().groups != 0 {
							t.Errorf("%d groups are left", n.state.Load().groups)
						}
						rounds := n.rounds.Load()
						if name != "stream" {
							s.frame('P', 6000, 1)
							pass(time.Second)
							if n.rounds.Load() != rounds {
								t.Error("the stream wakes the shard although nobody plays it")
							}
						}
					}
				}
			})
		})
	}
}

// 10,000 players of a stalled stream cost nothing, and neither do those that wait
// for its first frame or pause.
func TestStalledStreamIsIdle(t *testing.T) {
	inBubble(t, 100*time.Millisecond, func(t *testing.T, e *Engine, n *sockets) {
		s, empty := newSource(t), newSource(t)
		s.headers(0)
		s.frame('K', 0, 10)
		var one *player
		for range 5000 {
			one, _ = s.joinSocket(e, n, plenty, FLV{}, roomy)
			empty.joinSocket(e, n, plenty, FLV{}, roomy)
		}
		one.Pause(true)
		pass(5 * time.Second)
		rounds, sends := n.rounds.Load(), n.sends.Load()
		pass(time.Hour)
		if r := n.rounds.Load() - rounds; r > 0 || n.sends.Load() != sends {
			t.Errorf("%d rounds and %d sends in an hour without a frame", r, n.sends.Load()-sends)
		}
		s.frame('P', 40, 10) // one frame is one send each
		pass(time.Second)
		if got := n.sends.Load() - sends; got != 4999 {
			t.Errorf("%d sends", got)
		}
		if n.state.Load().opening != nil {
			t.Error("an opening is kept for nobody")
		}
	})
}

// The bytes that players begin with are made once for all that come together,
// kept up to date while they come, and let go of when nobody comes any more.
func TestOpeningIsShared(t *testing.T) {
	inBubble(t, 10*time.Millisecond, func(t *testing.T, e *Engine, n *sockets) {
		s := newSource(t)
		s.headers(0)
		s.group(0, 10_000)
		ms := 1000
		var first *byte
		opening := func() []byte { return n.state.Load().opening }
		for i := range 100 {
			_, k := s.joinSocket(e, n, plenty, FLV{}, roomy)
			synctest.Wait()
			pass(20 * time.Millisecond)
			if i == 0 {
				first = &opening()[0]
			}
			s.frame('P', ms, 1)
			ms += 40
			if i < 5 && &opening()[0] != first {
				t.Fatalf("player %d: the opening was made anew", i)
			}
			if lost, _ := s.gets(t, 0, k.seen()); lost > 0 {
				t.Fatalf("player %d lost %d", i, lost)
			}
		}
		pass(openingIdle / 2)
		if opening() == nil {
			t.Error("the opening is gone too early")
		}
		size := len(opening())
		s.frame('P', ms, 1)
		pass(openingIdle / 2)
		if len(opening()) <= size && opening() != nil {
			t.Error("the opening was not kept up to date")
		}
		pass(2 * time.Second) // without a frame
		if opening() != nil || n.state.Load().pieces != nil {
			t.Error("the opening is kept for nobody")
		}
	})
}

// Frames go out at once to few players, in batches to many, within the bound, and
// at once again when they have left; urgent players never wait long.
func TestPaceFollowsThePlayers(t *testing.T) {
	inBubble(t, 100*time.Millisecond, func(t *testing.T, e *Engine, n *sockets) {
		s := newSource(t)
		s.headers(0)
		s.frame('K', 0, 10)
		var crowd []*player
		_, one := s.joinSocket(e, n, plenty, FLV{}, roomy)
		synctest.Wait()
		wait := func() (longest time.Duration) {
			for ms := range 50 {
				before := len(one.seen())
				s.frame('P', 40*ms, 10)
				begin := time.Now()
				for synctest.Wait(); len(one.seen()) == before; synctest.Wait() {
					pass(time.Millisecond)
				}
				longest = max(longest, time.Since(begin))
				pass(7 * time.Millisecond)
			}
			return longest
		}
		if d := wait(); d > 0 {
			t.Errorf("a lone player waits for %v", d)
		}
		for range 3000 {
			p, _ := s.joinSocket(e, n, plenty, FLV{}, roomy)
			crowd = append(crowd, p)
		}
		synctest.Wait()
		s.frame('P', 1, 1)
		pass(time.Second)
		if d := wait(); d <= 10*time.Millisecond || d > 101*time.Millisecond {
			t.Errorf("in a crowd a player waits for %v", d)
		}
		sends := n.sends.Load()
		for ms := range 50 {
			s.frame('P', 2000+40*ms, 10)
			pass(2 * time.Millisecond)
		}
		pass(time.Second)
		if got := n.sends.Load() - sends; got > 3*3001 {
			t.Errorf("%d sends to a crowd in 100 ms", got)
		}
		for _, p := range crowd {
			p.End(Left)
		}
		pass(time.Second)
		if d := wait(); d > 0 {
			t.Errorf("a lone player waits for %v after the crowd", d)
		}
	})
}

// Urgent players wait for 5 ms at most, however many there are: a shard that has
// hundreds of streams must not look through all of them for each frame.
func TestUrgentPlayers(t *testing.T) {
	inBubble(t, 100*time.Millisecond, func(t *testing.T, e *Engine, n *sockets) {
		var all []*source
		var last *socket
		for range 300 {
			s := newSource(t)
			s.headers(0)
			s.frame('K', 0, 10)
			for range 2 {
				last = n.new(plenty)
				if _, err := e.Add(Player{Conn: last, Stream: s.s, Format: FLV{}, Limits: roomy, Urgent: true, Done: func(Result) {}}); err != nil {
					t.Fatal(err)
				}
			}
			all = append(all, s)
		}
		pass(time.Second)
		rounds := n.rounds.Load()
		for i := range 100 {
			all[i].frame('P', 40, 10)
			pass(time.Millisecond)
		}
		if n := n.rounds.Load() - rounds; n > 100/4 {
			t.Errorf("%d rounds in 100 ms", n)
		}
		pass(time.Second)
		begin, had := time.Now(), len(last.seen())
		all[299].frame('P', 40, 10)
		synctest.Wait()
		for len(last.seen()) == had {
			pass(time.Millisecond)
		}
		if d := time.Since(begin); d > 5*time.Millisecond {
			t.Errorf("an urgent player waits for %v", d)
		}
	})
}

// What comes during a round is for the next: each player is sent to once.
func TestRoundsSendWhatThereWas(t *testing.T) {
	inBubble(t, 120*time.Millisecond, func(t *testing.T, e *Engine, n *sockets) {
		s := newSource(t)
		s.headers(0)
		s.frame('K', 0, 10)
		const players = 3000
		var all []*socket
		for range players {
			_, k := s.joinSocket(e, n, plenty, FLV{}, roomy)
			all = append(all, k)
		}
		s.frame('P', 40, 10)
		pass(time.Second)
		before := n.sends.Load()
		var once sync.Once
		first := make(chan struct{}) // closed when the first frame is there
		meanwhile := func(_ *socket, b []byte) int {
			once.Do(func() { <-first; s.frame('P', 120, 10) })
			return len(b)
		}
		n.asOf.Store(&meanwhile)
		s.frame('P', 80, 10)
		close(first)
		if pass(120 * time.Millisecond); n.sends.Load() != before+players {
			t.Errorf("%d sends in one round", n.sends.Load()-before)
		}
		if pass(120 * time.Millisecond); n.sends.Load() != before+2*players {
			t.Errorf("%d sends in two rounds", n.sends.Load()-before)
		}
		for _, k := range all {
			if len(k.seen()) != len(all[0].seen()) {
				t.Fatal("players have not all got the same")
			}
		}
	})
}

func TestPace(t *testing.T) {
	const ms, us = time.Millisecond, time.Microsecond
	f := func(most, took time.Duration, sends, players, groups int, want time.Duration) {
		t.Helper()
		p := newPace(most, 0)
		p.round(took, sends, players, groups)
		if p.interval != want || p.full != (want == most && most > urgentLatency) {
			t.Errorf("most %v: interval %v, full %v, want %v", most, p.interval, p.full, want)
		}
	}
	f(120*ms, 0, 0, 0, 0, 0)
	f(120*ms, 600*us, 50, 50, 8, 0) // so few are served at once
	f(120*ms, 600*us, 50, 50, 9, 30*ms)
	f(120*ms, 12*us, 1, 1, 9, 600*us)
	f(120*ms, 5*us, 10, 10, 10, 5_281_500) // the guess of 12 us wears off
	f(120*ms, 1200*us, 100, 100, 1, 60*ms)
	f(120*ms, 2400*us, 200, 200, 1, 120*ms)
	f(120*ms, 120*ms, 10000, 10000, 1, 120*ms)
	f(0, 120*ms, 10000, 10000, 1, 0)
	f(urgentLatency, 120*ms, 10000, 10000, 1, urgentLatency)
	f(120*ms, time.Hour, 1, 1_000_000, 1, 120*ms)

	p := newPace(time.Second, 0) // a hitch is forgotten
	p.round(time.Second, 1, 1, 9)
	for range 100 {
		p.round(9*us, 1, 1, 9)
	}
	if p.interval != 0 {
		t.Errorf("after a hitch: interval %v", p.interval)
	}

	p = newPace(120*ms, 0) // at the bound a few players more or less change nothing
	p.round(2400*us, 200, 200, 1)
	if p.round(12*190*us, 190, 190, 1); !p.full || p.interval != 120*ms {
		t.Errorf("190 players: interval %v", p.interval)
	}
	if p.round(12*130*us, 130, 130, 1); p.full || p.interval != 78*ms {
		t.Errorf("130 players: interval %v", p.interval)
	}
	if p.round(12*190*us, 190, 190, 1); p.full {
		t.Errorf("190 players: interval %v", p.interval)
	}

	beat := time.Unix(1_000_000_080, 0) // behind which a round waits until all streams are fed
	for groups, want := range map[int]time.Duration{1: 10 * ms, fewGroups: 10 * ms, 100 + fewGroups: 20 * ms, 10_000: 40 * ms} {
		p = newPace(120*ms, 0)
		if p.round(ms, 1000, 1000, groups); p.wait(beat, beat.Add(-time.Second)) != want {
			t.Errorf("%d streams: a round %v behind the beat", groups, p.wait(beat, beat.Add(-time.Second)))
		}
	}
}

// beatOfAll is the beat of all shards of a node.
func beatOfAll(e *Engine) time.Duration {
	every, _ := e.Beat(false)
	return every
}

// At the bound rounds begin at fixed times of the clock, unless the shard is too
// busy to wait for them.
func TestRoundsFollowTheBeat(t *testing.T) {
	const ms = time.Millisecond
	f := func(slot int, full bool, took, last, now, want time.Duration) {
		t.Helper()
		p := newPace(120*ms, slot)
		p.interval, p.full, p.took = 120*ms, full, took
		at := time.Unix(1_700_000_000-1_700_000_000%3, 0) // a multiple of 120 ms
		if got := p.wait(at.Add(now), at.Add(last)); got != want {
			t.Errorf("slot %d, full %v, took %v: last %v, now %v: waits for %v, want %v", slot, full, took, last, now, got, want)
		}
	}
	f(0, true, ms, 10*ms, 11*ms, 119*ms)
	f(0, true, ms, 10*ms, 129*ms, ms)
	f(0, true, ms, -500*ms, 0, 10*ms)
	f(0, true, ms, 70*ms, 121*ms, 9*ms)  // the last was off the beat
	f(1, true, ms, 70*ms, 71*ms, 119*ms) // half an interval later
	f(1, true, ms, -50*ms, 0, 70*ms)
	f(2, true, ms, 15*ms, 120*ms, 15*ms) // a little behind the first
	f(7, true, ms, -35*ms, 0, 85*ms)
	f(8, true, ms, 10*ms, 120*ms, 10*ms)
	f(0, true, 90*ms, 13*ms, 105*ms, 25*ms)
	f(0, true, 91*ms, 13*ms, 105*ms, 28*ms) // as soon as it may
	f(0, true, 200*ms, 0, 210*ms, -90*ms)
	f(0, false, ms, 3*ms, 5*ms, 118*ms)
	f(0, false, ms, 3*ms, 130*ms, -7*ms)

	inBubble(t, 120*ms, func(t *testing.T, e *Engine, n *sockets) {
		s := newSource(t)
		s.headers(0)
		s.frame('K', 0, 10)
		var all []*player
		for range 3000 {
			p, _ := s.joinSocket(e, n, plenty, FLV{}, roomy)
			all = append(all, p)
		}
		s.frame('P', 40, 10)
		pass(time.Second)
		if beatOfAll(e) != 120*ms {
			t.Errorf("a beat of %v with 3000 players", beatOfAll(e))
		}
		e.opt.Slots = 4
		if beatOfAll(e) != 60*ms {
			t.Errorf("a beat of %v for the shards of a node with four workers", beatOfAll(e))
		}
		if every, at := e.Beat(true); every != 120*ms || at != 0 {
			t.Errorf("a beat of %v at %v for the one shard", every, at)
		}
		one := n.open[all[7].p.Conn.(*socket).fd]
		for i := range 20 { // what comes with the beat is sent shortly behind it
			pass(untilBeat(time.Now(), 120*ms, 0))
			before := len(one.seen())
			s.frame('P', 120*i, 10)
			if pass(9 * ms); len(one.seen()) != before {
				t.Fatalf("beat %d: sent too early", i)
			}
			if pass(ms); len(one.seen()) == before {
				t.Fatalf("beat %d: not sent 10 ms behind it", i)
			}
			pass(time.Duration(i*13%90) * ms)
		}
		for _, p := range all {
			p.End(Left)
		}
		s.frame('P', 9000, 10)
		if pass(time.Second); beatOfAll(e) != 0 {
			t.Errorf("a beat of %v without players", beatOfAll(e))
		}
	})
}

// With an owned descriptor nobody but the shard that has the player, or whoever
// comes when no shard has it, closes the connection; and only what Keep returned.
func TestOwnedDescriptorIsClosedByItsOwner(t *testing.T) {
	for _, end := range []struct {
		name string
		do   func(e *Engine, s *source, p *player, k *ownedSocket)
		want Reason
	}{
		{"kick", func(_ *Engine, _ *source, p *player, _ *ownedSocket) { p.End(Kicked) }, Kicked},
		{"gently", func(_ *Engine, _ *source, p *player, _ *ownedSocket) { p.EndGently(Left) }, Left},
		{"close", func(e *Engine, _ *source, _ *player, _ *ownedSocket) { e.Close() }, Shutdown},
		{"gone", func(_ *Engine, s *source, _ *player, k *ownedSocket) { k.leave(); s.frame('P', 40, 10) }, Left},
		{"stream", func(_ *Engine, s *source, _ *player, _ *ownedSocket) { s.s.Close(nil) }, Ended},
	} {
		for _, slow := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/slow=%v", end.name, slow), func(t *testing.T) {
				inBubble(t, 0, func(t *testing.T, e *Engine, n *sockets) {
					s := newSource(t)
					s.headers(0)
					s.frame('K', 0, 10)
					k := &ownedSocket{socket: n.new(plenty)}
					bystander := n.new(plenty) // on the same shard
					p := &player{done: make(chan Result, 2)}
					var err error
					if p.Session, err = e.Add(Player{Conn: k, Stream: s.s, Format: FLV{}, Limits: roomy, Done: func(r Result) { p.done <- r }}); err != nil {
						t.Fatal(err)
					}
					other := &player{done: make(chan Result, 2)}
					if other.Session, err = e.Add(Player{Conn: bystander, Stream: s.s, Format: WebSocketFLV{}, Limits: roomy, Done: func(r Result) { other.done <- r }}); err != nil {
						t.Fatal(err)
					}
					synctest.Wait()
					if p.fd != int32(k.fd) {
						t.Fatal("the engine does not use the descriptor")
					}
					if slow {
						k.change(func() { k.room = 5 })
						s.frame('P', 20, 10)
						synctest.Wait()
					}
					// The shard is in a send; the player is ended meanwhile.
					held, free := make(chan bool), make(chan bool)
					f := func(at *socket, b []byte) int {
						if at == bystander {
							held <- true
							<-free
						}
						return len(b)
					}
					n.asOf.Store(&f)
					s.frame('A', 30, 10)
					<-held
					n.asOf.Store(nil)
					done := make(chan bool)
					go func() { end.do(e, s, p, k); close(done) }()
					synctest.Wait()
					if !slow && k.released.Load() > 0 {
						t.Error("the descriptor was closed while the shard had the player")
					}
					k.drain(plenty / 2)
					free <- true
					if r := p.result2(); r.Reason != end.want {
						t.Errorf("%+v", r)
					}
					<-done
					if k.stolen.Load() > 0 || k.released.Load() == 0 || !k.isClosed() {
						t.Errorf("closed by whom it was kept from %d times, by the owner %d times", k.stolen.Load(), k.released.Load())
					}
				})
			})
		}
	}
}

// A descriptor that was closed before the engine had it is not used.
func TestDescriptorThatIsClosedAlready(t *testing.T) {
	inBubble(t, 0, func(t *testing.T, e *Engine, n *sockets) {
		s := newSource(t)
		s.headers(0)
		s.frame('K', 0, 10)
		k := &ownedSocket{socket: n.new(plenty)}
		k.socket.Close()
		done := make(chan Result, 1)
		p, err := e.Add(Player{Conn: k, Stream: s.s, Format: FLV{}, Limits: roomy, Done: func(r Result) { done <- r }})
		if err != nil || p.fd >= 0 {
			t.Errorf("descriptor %d: %v", p.fd, err)
		}
		if r := <-done; r.Reason != Left || k.stolen.Load() != 1 {
			t.Errorf("%+v, closed %d times", r, k.stolen.Load())
		}
	})
}

func TestConnectionBreaks(t *testing.T) {
	for _, c := range []struct {
		err  error
		want Reason
	}{
		{errors.New("out of luck"), Failed},
	} {
		if got := classify(c.err); got != c.want {
			t.Errorf("%v: %s", c.err, got)
		}
	}
	inBubble(t, 0, func(t *testing.T, e *Engine, n *sockets) {
		s := newSource(t)
		s.headers(0)
		s.frame('K', 0, 10)
		var all []*player
		for range 10 {
			p, k := s.joinSocket(e, n, plenty, FLV{}, roomy)
			synctest.Wait()
			if len(all)%3 == 1 {
				k.leave()
			}
			all = append(all, p)
		}
		s.frame('P', 40, 10)
		synctest.Wait()
		var places strings.Builder
		for _, p := range all {
			fmt.Fprint(&places, p.at())
		}
		if places.String() != "1311311311" || e.Len() != 7 {
			t.Errorf("places %s, %d players", &places, e.Len())
		}
	})
}
