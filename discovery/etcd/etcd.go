// Package etcd is the directory in a cluster of etcd servers: the engine for high
// availability. Several discovery servers may run over one etcd, and nodes may use
// it without any.
//
// In etcd, below the prefix:
//
//	s/STREAM  the lease in force; the key lives and dies with the etcd lease of its owner
//	e/STREAM  the last epoch that was given out for the stream; kept for some time
//	          after the lease has ended, so that an older one cannot come back
//	k/STREAM  the last kick of the stream, while its ban lasts and owners may hear of it
//	n/NODE    what the node says about itself, with an etcd lease of its own
//	w         written by who begins to watch, to see that it has caught up
//	id        a random name of these data: that of lost data is another one
//
// An owner has one etcd lease for all its streams, whose id follows from its name
// and instance, so that every discovery server prolongs the same one. What is
// changed is read first and written by a transaction that fails if anybody has
// written since.
package etcd

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/cespare/xxhash/v2"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"weir/discovery"
)

// Directory is a discovery.Engine and discovery.Watcher in etcd. A call takes at
// most the configured timeout and then ends with ErrUnavailable. Safe for
// concurrent use.
//
// It differs from Memory in this: TTLs are whole seconds, rounded up, and at least
// what etcd allows (two seconds as a rule); all leases of one instance end together;
// that a lease is older than one that has ended is remembered for ten to twenty
// minutes after the later one began.
type Directory struct {
	// Static.
	cli     *clientv3.Client
	prefix  string
	timeout time.Duration
	limits  discovery.MemoryConfig
	log     *slog.Logger
	set     *metrics.Set

	mu sync.Mutex // guards all below
	// alive is when the etcd lease of an owner was prolonged last by this process.
	alive map[clientv3.LeaseID]time.Time
	// memory is the etcd lease of e/ keys, and when it was granted.
	memory  clientv3.LeaseID
	granted time.Time
	// streams is about how many there are, by the count of then.
	streams int
	counted time.Time
}

// quiet is the log of the client: what goes wrong is in the errors of calls.
var quiet = zap.NewNop()

// epochMemory is how long the last epoch of a stream is kept at least after the
// ownership began.
const epochMemory = 10 * time.Minute

// Open connects to etcd. It does not wait for it: calls fail while it is away. The
// limits' zero values are no limits. It counts in set what Memory counts, but for what
// etcd does by itself. log and set may be nil. Close it at the end.
func Open(cfg discovery.EtcdConfig, limits discovery.MemoryConfig, log *slog.Logger, set *metrics.Set) (*Directory, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if set == nil {
		set = metrics.NewSet()
	}
	secure, err := tlsConfig(cfg.TLS)
	if err != nil {
		return nil, fmt.Errorf("open etcd: %w", err)
	}
	cli, err := clientv3.New(clientv3.Config{
		Endpoints: cfg.Endpoints, DialTimeout: cfg.DialTimeout, Username: cfg.Username, Password: string(cfg.Password), TLS: secure,
		DialKeepAliveTime: 2 * time.Second, DialKeepAliveTimeout: 2 * time.Second, // a frozen member is left
		MaxCallRecvMsgSize: 64 << 20,
		Logger:             quiet,
		DialOptions:        []grpc.DialOption{grpc.WithChainUnaryInterceptor(tryOthers)},
	})
	if err != nil {
		return nil, fmt.Errorf("open etcd: %w", err)
	}
	return &Directory{
		cli: cli, prefix: strings.TrimRight(cfg.Prefix, "/") + "/", timeout: cfg.Timeout, limits: limits, log: log, set: set,
		alive: make(map[clientv3.LeaseID]time.Time),
	}, nil
}

func tlsConfig(c discovery.EtcdTLS) (*tls.Config, error) {
	if c == (discovery.EtcdTLS{}) {
		return nil, nil
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CA != "" {
		pem, err := os.ReadFile(c.CA)
		if err != nil {
			return nil, fmt.Errorf("tls.ca: %w", err)
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("tls.ca: %s holds no certificate", c.CA)
		}
	}
	if c.Cert != "" {
		pair, err := tls.LoadX509KeyPair(c.Cert, c.Key)
		if err != nil {
			return nil, fmt.Errorf("tls.cert: %w", err)
		}
		t.Certificates = []tls.Certificate{pair}
	}
	return t, nil
}

// attempts is how many members a call tries within its timeout. One that stands
// still is noticed by the connection only after some ten seconds.
const attempts = 3

// share returns the context of attempt i of a call.
func share(ctx context.Context, i int) (context.Context, context.CancelFunc) {
	end, ok := ctx.Deadline()
	if !ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, time.Until(end)/time.Duration(attempts-i))
}

// tryOthers repeats a call that a member does not answer; the next attempt goes to
// another one. All that is written is guarded by revisions or may be done twice.
func tryOthers(
	ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption,
) (err error) {
	for i := range attempts {
		part, cancel := share(ctx, i)
		err = invoke(part, method, req, reply, conn, opts...)
		silent := err != nil && part.Err() != nil && ctx.Err() == nil
		cancel()
		if !silent {
			return err
		}
	}
	return err
}

// keepAlive prolongs an etcd lease, as tryOthers does for calls.
func (d *Directory) keepAlive(ctx context.Context, id clientv3.LeaseID) (err error) {
	for i := range attempts {
		part, cancel := share(ctx, i)
		_, err = d.cli.KeepAliveOnce(part, id)
		silent := err != nil && part.Err() != nil && ctx.Err() == nil
		cancel()
		if !silent {
			return err
		}
	}
	return err
}

// Close closes the connections.
func (d *Directory) Close() error { return d.cli.Close() }

// Run implements discovery.Engine. etcd does the upkeep.
func (d *Directory) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// Ready reports whether etcd answers, with a majority of its members.
func (d *Directory) Ready(ctx context.Context) error {
	ctx, cancel := d.bound(ctx)
	defer cancel()
	_, err := d.cli.Get(ctx, d.prefix+"id")
	return d.wrap(ctx, err)
}

func (d *Directory) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, d.timeout)
}

// wrap makes an error of etcd one of package discovery. ctx is that of the call,
// with the timeout; an error of its caller's stays what it is.
func (d *Directory) wrap(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(context.Cause(ctx), context.Canceled) {
		return context.Cause(ctx)
	}
	code := status.Code(err)
	var own rpctypes.EtcdError
	if errors.As(err, &own) {
		code = own.Code()
	}
	switch {
	case errors.Is(err, rpctypes.ErrAuthFailed), errors.Is(err, rpctypes.ErrUserEmpty), code == codes.PermissionDenied, code == codes.Unauthenticated:
		return fmt.Errorf("%w: etcd: %w", discovery.ErrRefused, err)
	}
	return fmt.Errorf("%w: etcd: %w", discovery.ErrUnavailable, err)
}

func (d *Directory) claimed(result string) {
	d.set.GetOrCreateCounter(fmt.Sprintf(`weir_discovery_claims_total{result=%q}`, result)).Inc()
}

func (d *Directory) renewed(result string, leases int) {
	d.set.GetOrCreateCounter(fmt.Sprintf(`weir_discovery_renewals_total{result=%q}`, result)).Add(leases)
}

func (d *Directory) streamKey(stream string) string { return d.prefix + "s/" + stream }
func (d *Directory) epochKey(stream string) string  { return d.prefix + "e/" + stream }
func (d *Directory) kickKey(stream string) string   { return d.prefix + "k/" + stream }
func (d *Directory) nodeKey(id string) string       { return d.prefix + "n/" + id }

// leaseID returns the id of the etcd lease of an instance of a node, for its
// streams or for itself.
func (d *Directory) leaseID(what, node, instance string) clientv3.LeaseID {
	h := xxhash.New()
	for _, s := range [...]string{d.prefix, what, node, instance} {
		_, _ = h.WriteString(s) // it cannot fail
		_, _ = h.Write([]byte{0})
	}
	return clientv3.LeaseID(h.Sum64()>>1 | 1)
}

// prolong makes an etcd lease last for its TTL from now on, and grants it if there
// is none. It does nothing if it was prolonged less than fresh ago.
func (d *Directory) prolong(ctx context.Context, id clientv3.LeaseID, ttl, fresh time.Duration) error {
	d.mu.Lock()
	last, known := d.alive[id]
	d.mu.Unlock()
	if known && time.Since(last) < fresh {
		return nil
	}
	asked := time.Now()
	err := d.keepAlive(ctx, id)
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		// The client's Grant has no id.
		_, err = etcdserverpb.NewLeaseClient(d.cli.ActiveConnection()).LeaseGrant(ctx, &etcdserverpb.LeaseGrantRequest{
			ID: int64(id), TTL: int64((ttl + time.Second - 1) / time.Second),
		})
		err = rpctypes.Error(err)
		if errors.Is(err, rpctypes.ErrLeaseExist) { // another server was faster
			err = nil
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil {
		delete(d.alive, id)
		return err
	}
	if len(d.alive) > 100_000 { // of nodes that are gone
		clear(d.alive)
	}
	d.alive[id] = asked
	return nil
}

// dead notes that an etcd lease has turned out to be gone.
func (d *Directory) dead(id clientv3.LeaseID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.alive, id)
}

// epochLease returns the etcd lease for e/ keys.
func (d *Directory) epochLease(ctx context.Context) (clientv3.LeaseID, error) {
	d.mu.Lock()
	id, at := d.memory, d.granted
	d.mu.Unlock()
	if id != 0 && time.Since(at) < epochMemory {
		return id, nil
	}
	asked := time.Now()
	g, err := d.cli.Grant(ctx, int64(2*epochMemory/time.Second))
	if err != nil {
		return 0, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.memory, d.granted = g.ID, asked
	return g.ID, nil
}

// forgetEpochLease has the next call of epochLease ask for another one: etcd has
// lost its data.
func (d *Directory) forgetEpochLease() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.memory = 0
}

func (d *Directory) leaseTTL(wish time.Duration) time.Duration {
	return capped(wish, d.limits.LeaseTTL, d.limits.MaxLeaseTTL)
}

func (d *Directory) nodeTTL(wish time.Duration) time.Duration {
	return capped(wish, d.limits.NodeTTL, d.limits.MaxLeaseTTL)
}

func capped(wish, normal, most time.Duration) time.Duration {
	if wish == 0 {
		wish = normal
	}
	if most > 0 {
		wish = min(wish, most)
	}
	return max(wish, time.Second)
}

// name returns the random name of the data in etcd, which it makes if there is none.
func (d *Directory) name(ctx context.Context) (string, int64, error) {
	key := d.prefix + "id"
	r, err := d.cli.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision(key), "=", 0)).
		Then(clientv3.OpPut(key, rand.Text()[:16])).Else().Commit()
	if err != nil {
		return "", 0, err
	}
	g, err := d.cli.Get(ctx, key)
	if err != nil {
		return "", 0, err
	}
	if len(g.Kvs) == 0 {
		return "", 0, fmt.Errorf("the key %s was removed", key)
	}
	return string(g.Kvs[0].Value), max(r.Header.Revision, g.Header.Revision), nil
}
