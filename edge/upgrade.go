package edge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"weir/internal/load"
	"weir/internal/node"
	"weir/internal/upgrade"
	"weir/internal/worker"
)

// adminFile is the name of the admin interface's socket among the files that go over
// to the next program.
const adminFile = "admin"

// inherited is what an edge's supervisor tells the program that takes its place,
// beside its workers and their sockets.
type inherited struct {
	Instance string           `json:"instance"` // in discovery: it is no other node
	Upgrade  *upgrade.Attempt `json:"upgrade"`

	admin *os.File
}

// inheritance reads what the program before has left; of none it is empty.
func inheritance(t *worker.Takeover) (inherited, error) {
	var i inherited
	if t == nil {
		return i, nil
	}
	if err := json.Unmarshal(t.Note, &i); err != nil {
		return i, fmt.Errorf("take over: %w", err)
	}
	i.admin = t.Files[adminFile]
	return i, nil
}

// listenAdmin listens on the socket that was left, or on the address.
func (i inherited) listenAdmin(ctx context.Context, address string) (net.Listener, error) {
	if i.admin == nil {
		return node.Listen(ctx, "admin.listen", address)
	}
	l, err := net.FileListener(i.admin)
	if err != nil {
		return nil, fmt.Errorf("take over admin.listen: %w", err)
	}
	return l, i.admin.Close() // l has a descriptor of its own
}

// noUpgrade is why a node cannot be upgraded, nil if it can.
func noUpgrade(program func() (string, error)) error {
	if program != nil {
		return nil
	}
	return errors.New("this node is supervised by another process")
}

// upgrader puts another program in the place of an edge's supervisor.
type upgrader struct {
	*reloader
	program  func() (path string, err error)
	instance string
	admin    net.Listener // nil: none
}

// do is an upgrade.Options.Do. The next program is tried, then the workers are rolled
// to it; if one does not become ready all go back. At last the supervisor becomes it.
func (u *upgrader) do(ctx context.Context, a *upgrade.Attempt) (err error) {
	if !u.changing.TryLock() {
		return errors.New("a reload is under way")
	}
	defer u.changing.Unlock()
	if u.drained.Draining() {
		return errDraining
	}
	path, err := u.program()
	if err != nil {
		return err
	}
	image, err := worker.OpenImage(path)
	if err != nil {
		return err
	}
	if a.To, err = u.supervisor.Try(ctx, image, u.file); err != nil {
		image.Close()
		return err
	}
	u.log.Info("workers are rolled to another program", "program", path, "version", a.To)
	if err := u.supervisor.Roll(ctx, spec, image, u.file); err != nil {
		if back := u.supervisor.Roll(ctx, spec, nil, u.file); back != nil {
			return fmt.Errorf("%w; and not all workers run the one before again: %w", err, back)
		}
		image.Close()
		return err
	}
	files := map[string]*os.File{}
	if l, ok := u.admin.(*net.TCPListener); ok {
		file, err := l.File()
		if err != nil {
			return halfway(err)
		}
		defer file.Close()
		files[adminFile] = file
	}
	return halfway(u.supervisor.Replace(image, func() (worker.Leave, error) {
		if u.drained.Draining() {
			return worker.Leave{}, errDraining
		}
		return worker.Leave{Config: u.file, Note: inherited{Instance: u.instance, Upgrade: a}, Files: files}, nil
	}))
}

// errDraining refuses an upgrade: what was asked of the node is not its program's to
// forget.
var errDraining = errors.New("the node drains")

// halfway is the error of an upgrade whose workers run the next program already.
func halfway(err error) error {
	return fmt.Errorf("the workers run the next program, their supervisor does not: %w", err)
}

// firstLoad is how long the first load of a node may take to be measured.
const firstLoad = 2 * time.Second

// awaitLoad returns when the load of the node is known, or does not become so.
func awaitLoad(ctx context.Context, m *load.Node) {
	timer := time.NewTimer(firstLoad)
	defer timer.Stop()
	select {
	case <-m.Jumps():
	case <-timer.C:
	case <-ctx.Done():
	}
}
