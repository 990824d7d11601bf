package chaos

import (
	"fmt"

	"weir/internal/chaos/model"
	"weir/internal/media"
)

// witness turns the tags that one player gets into events: a row of frames that
// follow each other is one. Not safe for concurrent use.
type witness struct {
	// Static.
	conn   int
	run    uint32 // of the checker
	stream uint32
	emit   func(model.Event)

	headers [2]bool
	rows    [2]row // audio, video
	begun   bool
	last    uint32 // time stamp of the last frame of either kind, once begun
}

// row is a run that may grow.
type row struct {
	model.Run
	open       bool
	begun, end int64 // ms of the run of the checker
}

// rowTime is how long a row grows, in ms: it is not told before it is over.
const rowTime = 250

// tag takes the next tag, at ms of the run.
func (w *witness) tag(t media.Tag, ms int64) {
	k := 0
	switch t.Kind() {
	case media.Video:
		k = 1
	case media.Audio:
	default:
		return
	}
	info := media.Sniff(t.Kind(), t.Body())
	if info.IsHeader() {
		w.flush()
		w.headers[k] = true
		return
	}
	m, err := readMark(t)
	if err != nil {
		w.damaged(ms, err.Error())
		return
	}
	if m.Run != w.run || m.Stream != w.stream || m.Inc == 0 {
		w.damaged(ms, fmt.Sprintf("%v: a frame of run %d, stream %d", errDamaged, m.Run, m.Stream))
		return
	}
	r := &w.rows[k]
	follows := r.open && r.Inc == int(m.Inc) && r.To+1 == int(m.Seq) && r.begun+rowTime > ms
	other := &w.rows[1-k]
	back := w.begun && int32(t.Time()-w.last) < 0
	if other.open && other.Inc != int(m.Inc) {
		w.tell(other)
	}
	if !follows || back || info.IsKeyFrame() {
		w.tell(r)
		*r = row{open: true, begun: ms, Run: model.Run{
			Video: k == 1, Inc: int(m.Inc), From: int(m.Seq), Key: info.IsKeyFrame(), Header: w.headers[k], Back: back, At: ms, First: t.Time(),
		}}
	}
	r.To, r.Last, r.end = int(m.Seq), t.Time(), ms
	w.begun, w.last = true, t.Time()
}

// flush tells the rows so far. They are of one incarnation.
func (w *witness) flush() {
	for k := range w.rows {
		w.tell(&w.rows[k])
	}
}

func (w *witness) tell(r *row) {
	if r.open {
		run := r.Run
		w.emit(model.Event{T: r.end, Kind: model.KindRun, Conn: w.conn, Run: &run})
		r.open = false
	}
}

func (w *witness) damaged(ms int64, what string) {
	w.flush()
	w.emit(model.Event{T: ms, Kind: model.KindDamaged, Conn: w.conn, Text: what})
}
