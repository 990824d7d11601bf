// Package geo finds the region of a client in a MaxMind database.
package geo

import (
	"fmt"
	"net/netip"

	"github.com/oschwald/maxminddb-golang/v2"
)

// Database is a MaxMind database with the regions that its codes stand for. Safe for
// concurrent use; closed when it is no longer used.
type Database struct {
	db      *maxminddb.Reader
	regions map[string]string
}

// Open opens a database of countries or cities (GeoLite2-Country and the like).
// regions says which region a code stands for: the ISO code of a country, as in DE, or
// else that of a continent, as in EU. Without any, the continents' codes are the
// regions.
func Open(path string, regions map[string]string) (*Database, error) {
	db, err := maxminddb.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open database of regions: %w", err)
	}
	return &Database{db, regions}, nil
}

// Close gives the file back.
func (d *Database) Close() error { return d.db.Close() }

// Region returns the region of an address; empty if the database or the table of
// regions does not have it.
func (d *Database) Region(addr netip.Addr) string {
	found := d.db.Lookup(addr.Unmap().WithZone(""))
	if !found.Found() {
		return ""
	}
	// A database without such a field leaves the code empty.
	var country, continent string
	_ = found.DecodePath(&country, "country", "iso_code")
	if r, ok := d.regions[country]; ok {
		return r
	}
	_ = found.DecodePath(&continent, "continent", "code")
	if len(d.regions) == 0 {
		return continent
	}
	return d.regions[continent]
}
