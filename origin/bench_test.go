package origin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"weir/discovery"
	"weir/internal/rtmp"
	"weir/internal/session"
)

// BenchmarkRedirect decides where a player of another origin's stream is sent, with
// 100 000 streams in the directory, of which the origin has a copy.
func BenchmarkRedirect(b *testing.B) {
	const streams = 100_000
	dir := newMemory()
	for i := range streams {
		if _, err := dir.Claim(b.Context(), discovery.Claim{
			Stream: fmt.Sprintf("%ss%d", key, i), Node: fmt.Sprintf("origin-%d", i%20), Instance: "1", TTL: time.Minute,
			Addr: discovery.Addr{RTMP: fmt.Sprintf("10.0.0.%d:1935", i%20), HTTP: fmt.Sprintf("10.0.0.%d:8080", i%20)},
		}); err != nil {
			b.Fatal(err)
		}
	}
	cfg, set := quick(), metrics.NewSet()
	cfg.Node.ID = "a"
	log := slog.New(slog.DiscardHandler)
	o := New(cfg, log, set)
	holder := discovery.NewHolder(dir, discovery.HolderConfig{
		Config: cfg.Discovery, Logger: log, Metrics: set,
		Self: discovery.Self{Node: "a", Addr: discovery.Addr{RTMP: "10.0.1.1:1935"}},
	})
	o.SetOwner(holder)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = holder.Run(ctx)
	}()
	b.Cleanup(func() { cancel(); <-done; o.Close() })
	requests := make([]session.PlayRequest, 1000)
	for i := range requests {
		t, err := o.Vhosts().FromRTMP("rtmp://a/live", "live", fmt.Sprintf("s%d", i*97))
		if err != nil {
			b.Fatal(err)
		}
		requests[i].Target = t
	}
	for b.Loop() {
		for i := range requests {
			var r *session.Redirect
			if _, err := o.Play(ctx, requests[i]); !errors.As(err, &r) || r.Epoch == 0 {
				b.Fatalf("play: %v", err)
			}
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(requests)), "ns/redirect")
}

// race has two publishers want one name at two origins at the same moment. It fails
// the test unless one of them has it, and returns how long the other was waiting.
func race(t testing.TB, a, b *site, name string) time.Duration {
	var wg sync.WaitGroup
	var answers [2]error
	var took [2]time.Duration
	starting := make(chan struct{})
	answered := [2]chan struct{}{make(chan struct{}), make(chan struct{})}
	var ready sync.WaitGroup
	for i, s := range []*site{a, b} {
		ready.Add(1)
		wg.Go(func() {
			said := sync.OnceFunc(func() { close(answered[i]) })
			defer said()
			c, u, err := s.dial(name, rtmp.DefaultClientConfig())
			ready.Done()
			if err != nil {
				answers[i] = err
				return
			}
			defer func() { _ = c.Unpublish(); c.Close() }()
			<-starting
			begin := time.Now()
			answers[i] = c.Publish(context.Background(), u.Name)
			took[i] = time.Since(begin)
			said()
			<-answered[1-i] // the name is not free before the other has its answer
		})
	}
	ready.Wait()
	close(starting)
	wg.Wait()
	loser := 0
	if answers[0] == nil {
		loser = 1
	}
	if answers[1-loser] != nil || code(answers[loser]) != rtmp.CodePublishBadName {
		t.Errorf("race for %s: %v and %v", name, answers[0], answers[1])
	}
	return took[loser]
}

// races runs n races, some at a time, and returns how long the losers waited.
func races(t testing.TB, n int) []time.Duration {
	cfg := quick()
	cfg.Discovery.LeaseTTL = 10 * time.Second // a slow machine is no lost lease
	dir := newMemory()
	a, b := start(t, "a", cfg, dir), start(t, "b", cfg, dir)
	waits := make([]time.Duration, n)
	var wg sync.WaitGroup
	places := make(chan struct{}, 8)
	for i := range n {
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			waits[i] = race(t, a, b, fmt.Sprintf("race-%d", i))
		})
	}
	wg.Wait()
	slices.Sort(waits)
	return waits
}

// Two publishers want one name at two origins at once: one has it, the other is
// told so.
func TestRaces(t *testing.T) {
	waits := races(t, 50)
	t.Logf("the losers waited for %v at the median, %v at most", waits[len(waits)/2], waits[len(waits)-1])
}

// BenchmarkRaces runs a thousand such races.
func BenchmarkRaces(b *testing.B) {
	const n = 1000
	for b.Loop() {
		waits := races(b, n)
		b.ReportMetric(float64(waits[n/2].Microseconds())/1000, "ms-p50")
		b.ReportMetric(float64(waits[n*99/100].Microseconds())/1000, "ms-p99")
		b.ReportMetric(float64(waits[n-1].Microseconds())/1000, "ms-max")
	}
}
