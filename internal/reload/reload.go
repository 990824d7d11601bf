// Package reload puts a changed configuration file in force while a node runs, or
// says why not, and remembers which one is.
package reload

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

// Outcome is what became of a file that was taken.
type Outcome struct {
	// Changed are the keys whose values differ from those before.
	Changed []string
	// Rolled says that workers were restarted, one by one, for it.
	Rolled bool
}

// Status is which configuration is in force, and how the last reload went.
type Status struct {
	// Version counts the configurations from 1, the one that the node began with.
	Version int `json:"version"`
	// Hash is the first half of the SHA-256 of the file in force.
	Hash string `json:"hash"`
	// Since is when it came into force.
	Since time.Time `json:"since"`
	// Last is the last reload; nil if there was none.
	Last *Attempt `json:"last,omitempty"`
}

// Attempt is one reload.
type Attempt struct {
	At time.Time `json:"at"`
	// Result is Applied, Unchanged or Refused.
	Result Result `json:"result"`
	// Changed are the keys that were changed by it.
	Changed []string `json:"changed,omitempty"`
	// Rolled says that workers were restarted for it.
	Rolled bool `json:"rolled,omitempty"`
	// Error is why it was refused: a line for each mistake.
	Error string `json:"error,omitempty"`
}

// Result is the word for how a reload went, as in metrics.
type Result string

// The results.
const (
	Applied   Result = "applied"
	Unchanged Result = "unchanged"
	Refused   Result = "refused"
)

// Options are what a Node is made of.
type Options struct {
	// File is the configuration in force.
	File []byte
	// Read returns the file as it is now, and its name for errors. nil: the node
	// has no file that could be read again.
	Read func() (file []byte, name string, err error)
	// Apply puts a file in force, or returns an error, with which nothing has
	// changed, unless the error says so.
	Apply func(ctx context.Context, file []byte, name string) (Outcome, error)
	Log   *slog.Logger
	Set   *metrics.Set
}

// Node reloads the configuration of a node. Safe for concurrent use: one reload
// runs at a time.
type Node struct {
	// Static.
	opt Options

	working chan struct{} // holds a token while a reload runs

	mu     sync.Mutex
	status Status // guarded by mu
}

// New returns a Node whose configuration is in force since now.
func New(o Options) *Node {
	n := &Node{opt: o, working: make(chan struct{}, 1), status: Status{Version: 1, Hash: hash(o.File), Since: time.Now()}}
	o.Set.NewGauge("weir_config_version", func() float64 { return float64(n.Status().Version) })
	for _, r := range []Result{Applied, Unchanged, Refused} {
		n.counter(r)
	}
	return n
}

func (n *Node) counter(r Result) *metrics.Counter {
	return n.opt.Set.GetOrCreateCounter(fmt.Sprintf("weir_config_reloads_total{result=%q}", r))
}

func hash(file []byte) string {
	sum := sha256.Sum256(file)
	return hex.EncodeToString(sum[:16])
}

// Status returns which configuration is in force.
func (n *Node) Status() Status {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.status
}

// errNoFile refuses a reload.
var errNoFile = errors.New("this node has no configuration file that could be read again")

// Reload reads the file and puts it in force. why is for the log. The error is the
// one of the status's last attempt.
func (n *Node) Reload(ctx context.Context, why string) (Status, error) {
	select {
	case n.working <- struct{}{}:
		defer func() { <-n.working }()
	case <-ctx.Done():
		return n.Status(), ctx.Err()
	}
	a := Attempt{At: time.Now(), Result: Applied}
	file, outcome, err := n.attempt(ctx)
	switch {
	case err != nil:
		a.Result, a.Error = Refused, err.Error()
		n.opt.Log.Error("configuration refused, the one before stays in force", "cause", why, "err", err)
	case len(outcome.Changed) == 0:
		a.Result = Unchanged
		n.opt.Log.Info("configuration is unchanged", "cause", why)
	default:
		a.Changed, a.Rolled = slices.Clone(outcome.Changed), outcome.Rolled
		n.opt.Log.Info("configuration reloaded", "cause", why, "changed", strings.Join(outcome.Changed, " "), "rolled", outcome.Rolled)
	}
	n.counter(a.Result).Inc()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.status.Last = &a
	if a.Result == Applied {
		n.status.Version++
		n.status.Since = a.At
	}
	if err == nil {
		n.status.Hash = hash(file) // comments may differ
	}
	return n.status, err
}

func (n *Node) attempt(ctx context.Context) ([]byte, Outcome, error) {
	if n.opt.Read == nil {
		return nil, Outcome{}, errNoFile
	}
	file, name, err := n.opt.Read()
	if err != nil {
		return nil, Outcome{}, err
	}
	outcome, err := n.opt.Apply(ctx, file, name)
	return file, outcome, err
}

// Serve reloads whenever asked gets something, until ctx ends. It returns nil.
func (n *Node) Serve(ctx context.Context, asked <-chan struct{}) error {
	for {
		select {
		case <-asked:
			_, _ = n.Reload(ctx, "SIGHUP") // it is in the log
		case <-ctx.Done():
			return nil
		}
	}
}

// Among splits changed keys into those that are, or are in, one of the sections
// or keys, and the others.
func Among(changed []string, sections ...string) (in, out []string) {
	for _, key := range changed {
		if slices.ContainsFunc(sections, func(s string) bool { return key == s || strings.HasPrefix(key, s+".") }) {
			in = append(in, key)
		} else {
			out = append(out, key)
		}
	}
	return in, out
}

// CannotChange returns an error for each of the keys, in the form of a
// configs.Validator.
func CannotChange(keys []string) error {
	var errs []error
	for _, key := range keys {
		errs = append(errs, fmt.Errorf("%s: cannot change while the node runs", key))
	}
	return errors.Join(errs...)
}
