// Package confdoc writes the configuration reference from the Config structs
// themselves: keys from yaml tags, defaults from a default value, and the text
// from the doc comments of the fields, so that the three cannot disagree.
package confdoc

import (
	"bytes"
	"encoding"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"weir/configs"
)

// Root is one kind of configuration file.
type Root struct {
	Title   string // of its chapter
	Intro   string // Markdown below the title
	Sample  string // path of a sample file from the module's root; may be empty
	Default any    // the Config struct, or a pointer to it, with all defaults
}

// Generate returns the reference in Markdown: intro, then a chapter for each
// root. module is the directory with go.mod, below which all Config types are.
// A field without a yaml tag or without a doc comment is an error; all such
// errors are joined.
func Generate(module, intro string, roots []Root) ([]byte, error) {
	path, err := modulePath(module)
	if err != nil {
		return nil, err
	}
	g := generator{module: module, path: path, comments: map[string]map[string]map[string]string{}}
	fmt.Fprintf(&g.out, "%s\n", strings.TrimSpace(intro))
	for _, root := range roots {
		fmt.Fprintf(&g.out, "\n## %s\n\n%s\n", root.Title, strings.TrimSpace(root.Intro))
		if root.Sample != "" {
			fmt.Fprintf(&g.out, "\nSample: [`%s`](../%s)\n", root.Sample, root.Sample)
		}
		v := reflect.Indirect(reflect.ValueOf(root.Default))
		if v.Kind() != reflect.Struct {
			g.errs = append(g.errs, fmt.Errorf("document %s: the default is %T, not a struct", root.Title, root.Default))
			continue
		}
		g.section(v, "", "", 0)
	}
	if err := errors.Join(g.errs...); err != nil {
		return nil, err
	}
	return g.out.Bytes(), nil
}

// modulePath reads the module's name from its go.mod.
func modulePath(dir string) (string, error) {
	data, err := os.ReadFile(filepath.Join(dir, "go.mod"))
	if err != nil {
		return "", fmt.Errorf("find the module: %w", err)
	}
	m := regexp.MustCompile(`(?m)^module\s+(\S+)`).FindSubmatch(data)
	if m == nil {
		return "", fmt.Errorf("find the module: %s names none", filepath.Join(dir, "go.mod"))
	}
	return string(m[1]), nil
}

type generator struct {
	module string // directory
	path   string // import path
	out    bytes.Buffer
	errs   []error

	comments map[string]map[string]map[string]string // package → type → field → text
}

// maxDepth ends the walk of types that contain themselves.
const maxDepth = 12

// section writes the keys of the struct v, which is at path: a table of the plain
// ones, then a section for each of the others.
func (g *generator) section(v reflect.Value, path, text string, depth int) {
	if depth > maxDepth {
		g.errs = append(g.errs, fmt.Errorf("%s: the configuration is nested too deeply", path))
		return
	}
	fields, err := configs.Fields(v.Type())
	if err != nil {
		g.errs = append(g.errs, err)
		return
	}
	if path != "" {
		fmt.Fprintf(&g.out, "\n### `%s`\n\n%s\n", path, text)
		path += "."
	}
	type part struct {
		value      reflect.Value
		path, text string
	}
	var parts []part
	rows := 0
	for _, f := range fields {
		comment, err := g.comment(f)
		if err != nil {
			g.errs = append(g.errs, err)
			continue
		}
		value := v.FieldByIndex(f.Index)
		if inner, suffix, note, ok := sectionOf(value); ok {
			parts = append(parts, part{inner, path + f.Key + suffix, strings.TrimSpace(comment + " " + note)})
			continue
		}
		if rows == 0 {
			fmt.Fprintf(&g.out, "\n| key | type | default | meaning |\n|---|---|---|---|\n")
		}
		rows++
		fmt.Fprintf(&g.out, "| `%s` | %s | %s | %s |\n", path+f.Key, typeName(f.Type), cell(defaultText(value)), cell(comment))
	}
	for _, p := range parts {
		g.section(p.value, p.path, p.text, depth+1)
	}
}

// sectionOf returns the struct that v is, points to, or has as its elements, with
// the defaults that a new one gets, and what to add to its key and its text.
func sectionOf(v reflect.Value) (inner reflect.Value, suffix, note string, ok bool) {
	if configs.IsScalar(v.Type()) {
		return v, "", "", false
	}
	switch v.Kind() {
	case reflect.Struct:
		return v, "", "", true
	case reflect.Pointer:
		if v.IsNil() {
			v = fresh(v.Type())
			note = "Absent by default; the defaults below hold if the section is there."
		}
		inner, suffix, _, ok = sectionOf(v.Elem())
		return inner, suffix, note, ok
	case reflect.Slice:
		inner, rest, _, ok := sectionOf(fresh(v.Type().Elem()))
		return inner, "[]" + rest, "A list of sections, one for each `-`.", ok
	case reflect.Map:
		inner, rest, _, ok := sectionOf(fresh(v.Type().Elem()))
		return inner, ".NAME" + rest, "A section for each NAME.", ok
	}
	return v, "", "", false
}

// fresh returns a new value of type t as the loader makes one for a file's entry.
func fresh(t reflect.Type) reflect.Value {
	if t.Kind() == reflect.Pointer {
		p := reflect.New(t).Elem()
		p.Set(fresh(t.Elem()).Addr())
		return p
	}
	p := reflect.New(t)
	if d, ok := p.Interface().(configs.Defaulter); ok {
		d.SetDefaults()
	}
	return p.Elem()
}

// comment returns the doc comment of a field as one paragraph.
func (g *generator) comment(f configs.Field) (string, error) {
	where := fmt.Sprintf("%s.%s (%s)", f.Owner, f.Name, f.Key)
	dir, ok := strings.CutPrefix(f.Owner.PkgPath()+"/", g.path+"/")
	if !ok || f.Owner.Name() == "" {
		return "", fmt.Errorf("%s: the type has no name or is not of this module, so that its comments cannot be found", where)
	}
	pkg, ok := g.comments[dir]
	if !ok {
		var err error
		if pkg, err = parseComments(filepath.Join(g.module, dir)); err != nil {
			return "", err
		}
		g.comments[dir] = pkg
	}
	text := pkg[f.Owner.Name()][f.Name]
	if text == "" {
		return "", fmt.Errorf("%s: has no doc comment", where)
	}
	return withoutGoNames(text, f)
}

var goName = regexp.MustCompile(`\b[A-Z][a-z0-9]+[A-Z]\w*\b`)

// withoutGoNames turns "MaxLag is the most that ..." into "The most that ...", and
// the names of the struct's other fields into their keys: the reader of the
// reference knows keys, not Go names.
func withoutGoNames(text string, f configs.Field) (string, error) {
	siblings, err := configs.Fields(f.Owner)
	if err != nil {
		return "", err
	}
	if rest, ok := strings.CutPrefix(text, f.Name+" "); ok {
		text = "`" + f.Key + "` " + rest
		for _, verb := range []string{"is ", "are "} {
			if rest, ok := strings.CutPrefix(rest, verb); ok && rest != "" {
				text = strings.ToUpper(rest[:1]) + rest[1:]
			}
		}
	}
	return goName.ReplaceAllStringFunc(text, func(word string) string {
		for _, s := range siblings {
			if s.Name == word {
				return "`" + s.Key + "`"
			}
		}
		return word
	}), nil
}

// parseComments returns the comments of all fields of all struct types that the
// Go files in dir declare at package level.
func parseComments(dir string) (map[string]map[string]string, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return nil, fmt.Errorf("read the comments of %s: %w", dir, err)
	}
	types := map[string]map[string]string{}
	for _, file := range files {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return nil, fmt.Errorf("read the comments of %s: %w", file, err)
		}
		for _, decl := range parsed.Decls {
			gen, ok := decl.(*ast.GenDecl)
			if !ok {
				continue
			}
			for _, spec := range gen.Specs {
				if t, ok := spec.(*ast.TypeSpec); ok {
					if s, ok := t.Type.(*ast.StructType); ok {
						types[t.Name.Name] = fieldComments(s)
					}
				}
			}
		}
	}
	return types, nil
}

func fieldComments(s *ast.StructType) map[string]string {
	comments := map[string]string{}
	for _, f := range s.Fields.List {
		text := f.Doc.Text()
		if text == "" {
			text = f.Comment.Text()
		}
		text = strings.Join(strings.Fields(text), " ")
		for _, name := range f.Names {
			comments[name.Name] = text
		}
	}
	return comments
}

// typeName says in words what a value of type t is written as.
func typeName(t reflect.Type) string {
	if c, ok := reflect.Zero(t).Interface().(configs.Chooser); ok && t.Kind() == reflect.String {
		words := slices.Clone(c.Choices())
		for i := range words {
			words[i] = "`" + words[i] + "`"
		}
		return strings.Join(words, ", ")
	}
	switch {
	case t == reflect.TypeFor[time.Duration]():
		return "duration"
	case t == reflect.TypeFor[configs.Secret]():
		return "secret"
	}
	switch t.Kind() {
	case reflect.Slice:
		return "list of " + plural(typeName(t.Elem()))
	case reflect.Map:
		return "names with " + plural(typeName(t.Elem()))
	case reflect.Pointer:
		return typeName(t.Elem())
	}
	if configs.IsScalar(t) && t.PkgPath() != "" {
		switch name := strings.ToLower(t.Name()); name {
		case "bytes":
			return "size"
		case "prefix":
			return "network"
		case "addr":
			return "address"
		case "addrport":
			return "address and port"
		}
	}
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Float32, reflect.Float64:
		return "number"
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return "whole number"
	}
	return "text"
}

func plural(word string) string {
	switch {
	case strings.HasPrefix(word, "`"), word == "text", strings.HasPrefix(word, "list"), strings.HasPrefix(word, "names"):
		return word
	case word == "address":
		return "addresses"
	}
	return word + "s"
}

// defaultText writes a default as one would in the file, in code style.
func defaultText(v reflect.Value) string {
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			return "none"
		}
		return defaultText(v.Elem())
	case reflect.Slice:
		items := make([]string, v.Len())
		for i := range items {
			items[i] = scalarText(v.Index(i))
		}
		return "`[" + strings.Join(items, ", ") + "]`"
	case reflect.Map:
		var items []string
		for it := v.MapRange(); it.Next(); {
			items = append(items, it.Key().String()+": "+scalarText(it.Value()))
		}
		slices.Sort(items)
		return "`{" + strings.Join(items, ", ") + "}`"
	}
	if text := scalarText(v); text != "" {
		return "`" + text + "`"
	}
	return "empty"
}

func scalarText(v reflect.Value) string {
	switch x := v.Interface().(type) {
	case time.Duration:
		text := x.String() // 1h0m0s
		if strings.HasSuffix(text, "m0s") {
			text = strings.TrimSuffix(text, "0s")
		}
		if strings.HasSuffix(text, "h0m") {
			text = strings.TrimSuffix(text, "0m")
		}
		return text
	case encoding.TextMarshaler:
		text, err := x.MarshalText()
		if err != nil {
			return ""
		}
		return string(text)
	}
	return fmt.Sprint(v.Interface())
}

// cell keeps text from ending a table's cell.
func cell(text string) string { return strings.ReplaceAll(text, "|", `\|`) }
