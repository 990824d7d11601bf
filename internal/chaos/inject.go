package chaos

import (
	"context"
	"fmt"
	"slices"
	"syscall"
	"time"

	"weir/internal/chaos/model"
	"weir/internal/chaos/wire"
)

// inject does a fault, and returns when it is over and repaired.
func (r *run) inject(ctx context.Context, id int, f fault) error {
	rest(ctx, f.after)
	if ctx.Err() != nil {
		return nil
	}
	r.rec.event(model.Event{Kind: model.KindFault, Text: f.String(), Fault: &model.Fault{ID: id, What: f.what, On: r.suffer(f)}})
	fmt.Fprintf(r.cfg.Out, "chaos: %7.3f s: %v\n", float64(r.rec.ms())/1000, f)
	err := r.carryOut(ctx, f)
	r.rec.event(model.Event{Kind: model.KindHeal, Fault: &model.Fault{ID: id}})
	return err
}

// suffer returns the nodes whose clients may be cut or left waiting by a fault.
// That of an origin or of discovery is no excuse for an edge.
func (r *run) suffer(f fault) []string {
	switch {
	case f.what == faultDiskFull: // it is nobody's excuse
		return nil
	case f.b == "":
		return []string{f.a}
	}
	var nodes []string
	for _, pair := range [][2]string{{f.a, f.b}, {f.b, f.a}} {
		if pair[0] == hostViewers || pair[0] == hostPublishers {
			nodes = append(nodes, pair[1])
		}
	}
	return nodes
}

func (r *run) carryOut(ctx context.Context, f fault) error {
	slow := func(p wire.Path) error {
		r.around(f.a, p)
		rest(ctx, f.hold)
		r.around(f.a, wire.Path{})
		return nil
	}
	switch f.what {
	case faultKill:
		return r.killNode(ctx, f, func() {}, func() {})
	case faultPower:
		return r.killNode(ctx, f, func() { r.around(f.a, wire.Path{Block: true}) }, func() { r.around(f.a, wire.Path{}) })
	case faultStop:
		n := r.cluster.node(f.a)
		n.signal(syscall.SIGSTOP, true)
		rest(ctx, f.hold)
		n.signal(syscall.SIGCONT, true)
	case faultKillWorker:
		return r.signalWorker(ctx, f, syscall.SIGKILL)
	case faultStopWorker:
		err := r.signalWorker(ctx, f, syscall.SIGSTOP)
		rest(ctx, f.hold)
		r.cluster.node(f.a).signal(syscall.SIGCONT, true)
		return err
	case faultIsolate:
		return slow(wire.Path{Block: true})
	case faultDelay:
		return slow(wire.Path{Delay: 500 * time.Millisecond})
	case faultLoss:
		return slow(wire.Path{Loss: f.loss})
	case faultDiskFull:
		if err := r.cluster.disk.fill(); err != nil {
			return err
		}
		rest(ctx, f.hold)
		return r.cluster.disk.free()
	case faultCut, faultOneWay:
		r.net.Set(f.a, f.b, wire.Path{Block: true})
		if f.what == faultCut {
			r.net.Set(f.b, f.a, wire.Path{Block: true})
		}
		rest(ctx, f.hold)
		r.net.Set(f.a, f.b, wire.Path{})
		r.net.Set(f.b, f.a, wire.Path{})
	}
	return nil
}

// around changes the wire between a host and all others, both ways.
func (r *run) around(host string, p wire.Path) {
	for _, other := range r.cfg.hosts() {
		if other != host {
			r.net.Set(host, other, p)
			r.net.Set(other, host, p)
		}
	}
}

func (r *run) killNode(ctx context.Context, f fault, before, after func()) error {
	n := r.cluster.node(f.a)
	before()
	n.kill()
	rest(ctx, f.hold)
	after()
	if err := n.start(); err != nil {
		return err
	}
	return n.awaitReady(context.WithoutCancel(ctx), startTimeout)
}

type nodeInfo struct {
	Workers []struct {
		Index int    `json:"index"`
		State string `json:"state"`
		PID   int    `json:"pid"`
	} `json:"workers"`
}

func (r *run) signalWorker(ctx context.Context, f fault, s syscall.Signal) error {
	var info nodeInfo
	if err := r.cluster.node(f.a).ask(ctx, "/api/v1/node", &info); err != nil {
		return fmt.Errorf("ask %s for its workers: %w", f.a, err)
	}
	i := slices.IndexFunc(info.Workers, func(w struct {
		Index int    `json:"index"`
		State string `json:"state"`
		PID   int    `json:"pid"`
	}) bool {
		return w.Index == f.worker && w.PID > 0
	})
	if i < 0 {
		return nil // it is being started
	}
	if err := syscall.Kill(info.Workers[i].PID, s); err != nil && err != syscall.ESRCH {
		return fmt.Errorf("signal worker %d of %s: %w", f.worker, f.a, err)
	}
	return nil
}
