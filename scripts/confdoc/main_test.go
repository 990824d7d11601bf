package main

import (
	"testing"

	"weir/internal/confdoc"
)

func TestReferenceIsUpToDate(t *testing.T) {
	want, err := generate("../..")
	if err != nil {
		t.Fatal(err)
	}
	confdoc.Check(t, "../../docs/configuration.md", want, "go run ./scripts/confdoc > docs/configuration.md")
}
