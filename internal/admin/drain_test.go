package admin

import (
	"testing"
	"time"

	"weir/internal/drain"
)

// Workers come and go while the node drains: what they had moved and cut stays counted,
// under whatever number they were asked.
func TestDrainCountsWorkersThatHaveEnded(t *testing.T) {
	said := []drain.Progress{{Players: 5, Moved: 1}, {Publishers: 1}, {Players: 2}}
	of := func(i int) *fakeWorker {
		return worker(t, i, "", WorkerHandler(Source{Drain: func(*drain.Order) drain.Progress { return said[i] }}))
	}
	first, second, third := of(0), of(1), of(2)
	first.info.State, second.info.State = workerReady, workerRetiring
	all := []*fakeWorker{first, second}
	apply := DrainWorkers(func() (list []WorkerInfo) { return supervise(all...).Workers() }, supervise(first, second, third).DialWorker)
	o := &drain.Order{Since: time.Now(), Until: time.Now().Add(time.Minute)}
	want := func(o *drain.Order, p drain.Progress) {
		t.Helper()
		if got, err := apply(t.Context(), o); err != nil || got != p {
			t.Errorf("%+v, %v, want %+v", got, err, p)
		}
	}
	want(o, drain.Progress{Players: 5, Publishers: 1, Moved: 1})
	said[1] = drain.Progress{Cut: 1}
	want(o, drain.Progress{Players: 5, Moved: 1, Cut: 1})
	all = []*fakeWorker{first} // the second has ended
	want(o, drain.Progress{Players: 5, Moved: 1, Cut: 1})
	first.info.State, said[0] = workerRetiring, drain.Progress{Players: 4, Moved: 2}
	all = []*fakeWorker{third, first}
	want(o, drain.Progress{Players: 6, Moved: 2, Cut: 1})
	all = []*fakeWorker{third}
	want(&drain.Order{Since: o.Since.Add(time.Second), Until: o.Until}, drain.Progress{Players: 2}) // another drain
}
