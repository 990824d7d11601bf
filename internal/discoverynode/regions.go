package discoverynode

import (
	"fmt"
	"net/netip"
	"os"

	"weir/discovery/geo"
	"weir/discovery/schedule"
)

// regions are the tables in which the regions of clients are looked up: that of
// networks, then the database; each nil if it is not configured.
type regions struct {
	networks *schedule.Networks
	database *geo.Database
}

func openRegions(cfg ScheduleConfig) (*regions, error) {
	r := &regions{}
	if cfg.Networks != "" {
		f, err := os.Open(cfg.Networks)
		if err != nil {
			return nil, fmt.Errorf("schedule.networks: %w", err)
		}
		defer f.Close()
		if r.networks, err = schedule.ReadNetworks(f); err != nil {
			return nil, fmt.Errorf("schedule.networks: %s: %w", cfg.Networks, err)
		}
	}
	if cfg.MaxMind.File != "" {
		var err error
		if r.database, err = geo.Open(cfg.MaxMind.File, cfg.MaxMind.Regions); err != nil {
			return nil, fmt.Errorf("schedule.maxmind.file: %w", err)
		}
	}
	return r, nil
}

// Region implements schedule.Locator.
func (r *regions) Region(addr netip.Addr) string {
	if r.networks != nil {
		if region := r.networks.Region(addr); region != "" {
			return region
		}
	}
	if r.database != nil {
		return r.database.Region(addr)
	}
	return ""
}

func (r *regions) close() {
	if r.database != nil {
		_ = r.database.Close()
	}
}
