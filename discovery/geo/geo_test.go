package geo

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// writer writes the data section of a MaxMind database (MaxMind DB File Format
// Specification 2.0).
type writer struct{ strings.Builder }

func (w *writer) control(kind, size int) {
	if kind > 7 {
		w.WriteByte(byte(size))
		w.WriteByte(byte(kind - 7))
		return
	}
	w.WriteByte(byte(kind<<5 | size))
}

func (w *writer) text(s string) {
	w.control(2, len(s))
	w.WriteString(s)
}

func (w *writer) number(kind int, x uint32) {
	if kind == 5 { // of 16 bits
		w.control(kind, 2)
		w.Write([]byte{byte(x >> 8), byte(x)})
		return
	}
	w.control(kind, 4)
	w.Write([]byte{byte(x >> 24), byte(x >> 16), byte(x >> 8), byte(x)})
}

// database writes a database of IPv4 networks.
func database(t *testing.T, networks map[string][2]string) string {
	t.Helper()
	type node struct{ child [2]int } // 0: nothing; over 0: node; below: offset of data
	tree := []node{{}}
	var data writer
	for network, codes := range networks {
		offset := data.Len()
		data.control(7, 2)
		data.text("country")
		data.control(7, 1)
		data.text("iso_code")
		data.text(codes[0])
		data.text("continent")
		data.control(7, 1)
		data.text("code")
		data.text(codes[1])
		p := netip.MustParsePrefix(network)
		at, bytes := 0, p.Addr().As4()
		for i := range p.Bits() {
			bit := int(bytes[i/8] >> (7 - i%8) & 1)
			switch {
			case i == p.Bits()-1:
				tree[at].child[bit] = -1 - offset
			case tree[at].child[bit] == 0:
				tree = append(tree, node{})
				tree[at].child[bit] = len(tree) - 1
				at = len(tree) - 1
			default:
				at = tree[at].child[bit]
			}
		}
	}
	var file writer
	for _, n := range tree {
		for _, c := range n.child {
			switch {
			case c == 0:
				c = len(tree)
			case c < 0:
				c = len(tree) + 16 + (-1 - c)
			}
			file.Write([]byte{byte(c >> 16), byte(c >> 8), byte(c)})
		}
	}
	file.Write(make([]byte, 16))
	file.WriteString(data.String())
	file.WriteString("\xab\xcd\xefMaxMind.com")
	file.control(7, 9)
	file.text("node_count")
	file.number(6, uint32(len(tree)))
	file.text("record_size")
	file.number(5, 24)
	file.text("ip_version")
	file.number(5, 4)
	file.text("database_type")
	file.text("Test-Country")
	file.text("languages")
	file.control(11, 0)
	file.text("binary_format_major_version")
	file.number(5, 2)
	file.text("binary_format_minor_version")
	file.number(5, 0)
	file.text("build_epoch")
	file.number(9, 1)
	file.text("description")
	file.control(7, 0)
	path := filepath.Join(t.TempDir(), "test.mmdb")
	if err := os.WriteFile(path, []byte(file.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestRegion(t *testing.T) {
	path := database(t, map[string][2]string{"10.0.0.0/8": {"DE", "EU"}, "192.0.2.0/24": {"US", "NA"}, "198.51.100.0/24": {"FR", "EU"}, "203.0.113.0/24": {"JP", "AS"}})
	f := func(regions map[string]string, want map[string]string) {
		t.Helper()
		d, err := Open(path, regions)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		for addr, region := range want {
			if got := d.Region(netip.MustParseAddr(addr)); got != region {
				t.Errorf("%s is in %q, want %q", addr, got, region)
			}
		}
	}
	f(nil, map[string]string{"10.1.2.3": "EU", "::ffff:192.0.2.1": "NA", "192.0.3.1": "", "2001:db8::1": ""})
	f(map[string]string{"DE": "eu-central", "EU": "eu-west", "NA": "us"}, map[string]string{
		"10.1.2.3": "eu-central", "198.51.100.1": "eu-west", "192.0.2.1": "us", "203.0.113.1": "",
	})
	if _, err := Open(filepath.Join(t.TempDir(), "none"), nil); err == nil {
		t.Error("no file is a database")
	}
	bad := filepath.Join(t.TempDir(), "bad")
	if err := os.WriteFile(bad, []byte("10.0.0.0/8 eu\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(bad, nil); err == nil {
		t.Error("a text is a database")
	}
}
