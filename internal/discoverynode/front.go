package discoverynode

import (
	"context"
	"fmt"
	"log/slog"
	"net"

	"github.com/VictoriaMetrics/metrics"
	"golang.org/x/sync/errgroup"

	"weir/discovery"
	"weir/discovery/dns"
	"weir/discovery/httpdns"
	"weir/internal/node"
)

// front is where clients ask, beside nodes: HTTP-DNS and DNS, each nil if it is not
// configured.
type front struct {
	resolve net.Listener
	udp     net.PacketConn
	tcp     net.Listener
}

func listenFront(ctx context.Context, cfg Config) (f front, err error) {
	defer func() {
		if err != nil {
			f.close()
		}
	}()
	if cfg.Resolve.Listen != "" {
		if f.resolve, err = node.Listen(ctx, "resolve.listen", cfg.Resolve.Listen); err != nil {
			return f, err
		}
	}
	if cfg.DNS.Listen != "" {
		if f.tcp, err = node.Listen(ctx, "dns.listen", cfg.DNS.Listen); err != nil {
			return f, err
		}
		var lc net.ListenConfig
		if f.udp, err = lc.ListenPacket(ctx, "udp", f.tcp.Addr().String()); err != nil {
			return f, fmt.Errorf("dns.listen: %w", err)
		}
	}
	return f, nil
}

func (f front) close() {
	if f.resolve != nil {
		f.resolve.Close()
	}
	if f.tcp != nil {
		f.tcp.Close()
	}
	if f.udp != nil {
		f.udp.Close()
	}
}

// serve answers in goroutines of g.
func (f front) serve(ctx context.Context, g *errgroup.Group, cfg Config, placer *discovery.Placer, log *slog.Logger, set *metrics.Set) {
	if f.resolve != nil {
		log.Info("resolve listens", "http", f.resolve.Addr().String())
		s := httpdns.NewServer(cfg.Resolve, placer, set)
		g.Go(func() error { return s.Serve(ctx, f.resolve) })
	}
	if f.tcp != nil {
		log.Info("dns listens", "udp", f.udp.LocalAddr().String(), "tcp", f.tcp.Addr().String())
		s := dns.NewServer(cfg.DNS, placer, set)
		g.Go(func() error { return s.Serve(ctx, f.udp, f.tcp) })
	}
}
