package discovery_test

import (
	"context"
	"net/http/httptest"
	"sync"
	"testing"

	"weir/discovery"
	"weir/discovery/dirtest"
)

func runMemory(t *testing.T) *discovery.Memory {
	t.Helper()
	m := discovery.NewMemory(discovery.DefaultServerConfig().Memory(), nil, nil)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = m.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return m
}

func TestMemoryIsAnEngine(t *testing.T) {
	dirtest.Run(t, 1000, func(t *testing.T) dirtest.Engine { return runMemory(t) })
}

// The same over the network.
func TestClientIsAnEngine(t *testing.T) {
	dirtest.Run(t, 100, func(t *testing.T) dirtest.Engine {
		ts := httptest.NewServer(discovery.NewHandler(discovery.HandlerConfig{Engine: runMemory(t), MaxBody: 1 << 20}))
		t.Cleanup(ts.Close)
		cfg := discovery.DefaultConfig()
		cfg.URLs = []string{ts.URL}
		c := discovery.NewClient(cfg, nil)
		t.Cleanup(func() { c.Close() })
		return engineOf{c}
	})
}

// engineOf is a client without the upkeep that an Engine has.
type engineOf struct{ *discovery.Client }

func (engineOf) Run(ctx context.Context) error { <-ctx.Done(); return nil }
