package main

import "weir/internal/confdoc"

// roots lists the kinds of configuration files, one chapter each.
func roots() []confdoc.Root {
	return []confdoc.Root{}
}
