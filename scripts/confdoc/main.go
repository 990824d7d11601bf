// Command confdoc writes the configuration reference to standard output:
//
//	go run ./scripts/confdoc > docs/configuration.md
//
// It is run from the module's root.
package main

import (
	"fmt"
	"os"

	"weir/internal/confdoc"
)

func main() {
	out, err := generate(".")
	if err == nil {
		_, err = os.Stdout.Write(out)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// generate returns the reference of the module in a directory.
func generate(module string) ([]byte, error) {
	table := roots()
	if len(table) == 0 {
		return nil, fmt.Errorf("write the configuration reference: no configuration is listed in scripts/confdoc/roots.go")
	}
	return confdoc.Generate(module, intro, table)
}

const intro = "<!-- Written by scripts/confdoc from the Config structs. Do not edit. -->\n" + `
# Configuration

A node reads one YAML file, given with ` + "`-c`" + ` (` + "`-`" + ` is standard input). Its key ` + "`role`" + ` says what the
node is: ` + "`edge`, `origin` or `discovery`" + `. Files are read strictly: a key that is not on this page, a
value that does not fit, a key given twice or a second document is an error with file, line and key,
all of them are reported at once, and the node does not start. ` + "`weir check -c FILE`" + ` says what is wrong
with a file, or prints the configuration that is in force.

- A **duration** is a number with a unit: ` + "`300ms`, `5s`, `1h30m`" + `.
- A **size** is a whole number of bytes with an optional unit: ` + "`64KiB`, `16MiB`, `1GiB` (powers of 1024) or `kB`, `MB`, `GB`" + `.
- A **network** is ` + "`10.0.0.0/8`" + ` or, for one address, ` + "`10.0.0.7/32`" + `.
- Any value can come from elsewhere: ` + "`${ENV:NAME}`" + ` is an environment variable and ` + "`${FILE:/path}`" + ` the contents
  of a file without the newline at its end. A reference is the whole value, and it is an error if what it
  names is missing or empty. A **secret** is never printed.
- A section that is not in the file has its defaults; a list that is in the file replaces the default list.
- An anchor (` + "`&name`" + `) and alias (` + "`*name`" + `) repeat a whole value. Merge keys (` + "`<<`" + `) and tags are not supported.
`
