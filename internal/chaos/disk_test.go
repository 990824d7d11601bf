package chaos

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// A disk that is full takes nothing, and what is on it stays.
func TestDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root may make a file system")
	}
	d, err := newDisk()
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	f, err := d.open("a.log")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	page := make([]byte, os.Getpagesize())
	for i := range page {
		page[i] = 'x'
	}
	if _, err := f.Write(page); err != nil {
		t.Fatal(err)
	}
	if err := d.fill(); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(page); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("a full disk: %v", err)
	}
	if err := d.free(); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(page); err != nil {
		t.Errorf("there is room again: %v", err)
	}
	dir := t.TempDir()
	if err := d.save("a.log", dir); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "a.log")); err != nil || len(b) != 2*len(page) {
		t.Errorf("%d bytes were saved, %v; want two pages", len(b), err)
	}
}
