// Package configs loads weir's configuration files, strictly: what a file says
// is either understood and in force, or it is an error that names the file, the
// line and the key. It also holds the sample files.
//
// The package is generic: a role hands in a pointer to its Config, filled with
// defaults, and gets it back with the file's values on top. Structs name their
// keys with `yaml` tags; see [Fields] for what a Config may consist of.
//
// All functions are safe for concurrent use on different targets.
package configs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"
)

// MaxFileSize is the size in bytes over which a configuration file is refused.
const MaxFileSize = 1 << 20

// Validator is what the root of a configuration may implement to judge values
// that are well formed but wrong. Validate returns nil or errors joined with
// errors.Join; the message of each begins with the key path it is about and a
// colon, relative to the receiver ("play.max_lag: must be at least 1s"). A
// parent adds its own key with [Prefix].
type Validator interface {
	Validate() error
}

// Defaulter is implemented (on the pointer) by the types of list elements, map
// values and optional sections, whose values do not exist before the file names
// them: SetDefaults fills the fresh value before the file's keys are applied.
type Defaulter interface {
	SetDefaults()
}

// Chooser is implemented by string types that allow only certain values. The
// loader refuses others and the reference lists them.
type Chooser interface {
	Choices() []string
}

// Load reads the file at path (see [Read]) and parses it into the struct that
// into points to (see [Parse]).
func Load(path string, into any) error {
	data, err := Read(path)
	if err != nil {
		return err
	}
	return Parse(displayName(path), data, into)
}

// Read returns the contents of the file at path, which may be a device such as
// /dev/fd/3, or "-" for standard input. Whoever needs both the role and the
// configuration of a file reads it once: a pipe cannot be read twice. A file
// over [MaxFileSize] is an error.
func Read(path string) ([]byte, error) {
	var r io.Reader = os.Stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, fmt.Errorf("read configuration %s: %w", path, cause(err))
		}
		defer f.Close()
		r = f
	}
	data, err := io.ReadAll(io.LimitReader(r, MaxFileSize+1))
	if err != nil {
		return nil, fmt.Errorf("read configuration %s: %w", displayName(path), cause(err))
	}
	if len(data) > MaxFileSize {
		return nil, fmt.Errorf("read configuration %s: the file is larger than %d bytes", displayName(path), MaxFileSize)
	}
	return data, nil
}

// cause drops the "open PATH:" of a file error, since the caller names the file.
func cause(err error) error {
	var pathErr *os.PathError
	if errors.As(err, &pathErr) {
		return pathErr.Err
	}
	return err
}

func displayName(path string) string {
	if path == "-" {
		return "stdin"
	}
	return path
}

// Parse applies the YAML document data to the struct that into points to, which
// the caller has filled with defaults, and then calls its Validate if it is a
// [Validator]. Keys that the document does not name keep their values, except
// that a list of the document replaces the default list. name stands for the
// file in errors.
//
// The error is [Problems], with everything that is wrong, unless into itself is
// unfit (no pointer to a struct, a field without a key). After an error the
// target is partly filled and must not be used.
func Parse(name string, data []byte, into any) error {
	target := reflect.ValueOf(into)
	if target.Kind() != reflect.Pointer || target.IsNil() || target.Elem().Kind() != reflect.Struct {
		return fmt.Errorf("parse configuration %s: the target is %T, not a pointer to a struct", name, into)
	}
	if err := checkType(target.Type().Elem()); err != nil {
		return fmt.Errorf("parse configuration %s: %w", name, err)
	}
	root, err := document(name, data)
	if err != nil {
		return err
	}

	d := decoder{
		file:  name,
		root:  target.Type().Elem(),
		lines: map[string]int{"": root.Line},
	}
	d.value(root, target.Elem(), "")
	if v, ok := into.(Validator); ok && !d.aborted {
		if err := v.Validate(); err != nil {
			d.validation(err)
		}
	}
	return d.result()
}

// Roles are the values of the top-level key role, which says what node a file
// configures.
func Roles() []string { return []string{"edge", "origin", "discovery"} }

// Role returns the role of the configuration file at path; see [RoleOf].
func Role(path string) (string, error) {
	data, err := Read(path)
	if err != nil {
		return "", err
	}
	return RoleOf(displayName(path), data)
}

// RoleOf returns the value of the top-level key role of a configuration, one of
// [Roles], and leaves everything else to [Parse]. The error is [Problems].
func RoleOf(name string, data []byte) (string, error) {
	root, err := document(name, data)
	if err != nil {
		return "", err
	}
	roles := Roles()
	problem := func(line int, text string) error {
		return Problems{{File: name, Line: line, Key: "role", Text: text}}
	}
	for i := 0; root.Kind == yaml.MappingNode && i+1 < len(root.Content); i += 2 {
		key, value := root.Content[i], root.Content[i+1]
		switch {
		case key.Value != "role":
		case value.Kind != yaml.ScalarNode || value.Tag == "!!null":
			return "", problem(key.Line, "must be "+oneOf(roles)+", not "+shape(value))
		case !slices.Contains(roles, value.Value):
			return "", problem(key.Line, fmt.Sprintf("must be %s, not %q", oneOf(roles), clip(value.Value)))
		default:
			return value.Value, nil
		}
	}
	return "", problem(root.Line, "is missing; it must be "+oneOf(roles))
}

// document parses data into the node of its only document's contents.
func document(name string, data []byte) (*yaml.Node, error) {
	problem := func(line int, text string) error {
		return Problems{{File: name, Line: line, Text: text}}
	}
	if len(data) > MaxFileSize {
		return nil, problem(1, fmt.Sprintf("the file is larger than %d bytes", MaxFileSize))
	}
	loader, err := yaml.NewLoader(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("parse configuration %s: %w", name, err)
	}
	var first, second yaml.Node
	switch err := loader.Load(&first); {
	case err == io.EOF || err == nil && len(first.Content) == 0:
		return nil, problem(1, "the file is empty")
	case err != nil:
		return nil, syntaxProblem(name, err)
	}
	switch err := loader.Load(&second); {
	case err == nil:
		return nil, problem(second.Line, "a second document (---) begins here; a configuration is one document")
	case err != io.EOF:
		return nil, syntaxProblem(name, err)
	}
	root := first.Content[0]
	if root.Kind == yaml.ScalarNode && root.Tag == "!!null" {
		return nil, problem(1, "the file is empty")
	}
	return root, nil
}

// syntaxProblem turns an error of the YAML parser into ours. The parser stops at
// the first, so there is only one.
func syntaxProblem(name string, err error) error {
	line, text := 1, err.Error()
	var load *yaml.LoadError
	if errors.As(err, &load) {
		text = load.Message
		if load.ContextMsg != "" {
			text = load.ContextMsg + ": " + text
			if load.ContextMark.Line > 0 && load.ContextMark.Line != load.Mark.Line {
				text += fmt.Sprintf(" (it begins on line %d)", load.ContextMark.Line)
			}
		}
		line = max(line, load.Mark.Line)
	}
	return Problems{{File: name, Line: line, Text: "not valid YAML: " + strings.ReplaceAll(text, "\n", " ")}}
}

// Effective prints a configuration as YAML that [Parse] reads back, except that
// a [Secret] that is set is printed as asterisks.
func Effective(v any) ([]byte, error) {
	out, err := yaml.Dump(v, yaml.WithLineWidth(-1))
	if err != nil {
		return nil, fmt.Errorf("print configuration: %w", err)
	}
	return out, nil
}
