package configs

import (
	"encoding"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"
)

// maxAliased bounds the values that a file sets through aliases, so that a few
// lines of aliases of aliases cannot grow into gigabytes.
const maxAliased = 100_000

// A decoder applies the nodes of one file to one target. It goes on after a
// problem, so that all are found in one run.
type decoder struct {
	file string
	root reflect.Type // of the target, to look for misplaced keys

	problems []Problem
	lines    map[string]int // key path → line, of every key in the file; "" is the document
	secrets  []secretValue  // values to keep out of messages
	open     []*yaml.Node   // aliased nodes being expanded, to find one inside itself
	aliased  int            // values set through aliases
	aborted  bool           // there were too many: nothing more is looked at
}

func (d *decoder) problem(n *yaml.Node, path, format string, args ...any) {
	d.problems = append(d.problems, Problem{File: d.file, Line: n.Line, Key: path, Text: fmt.Sprintf(format, args...)})
}

// value sets v from n, whose key path is path.
func (d *decoder) value(n *yaml.Node, v reflect.Value, path string) {
	if d.aborted {
		return
	}
	if len(d.open) > 0 {
		if d.aliased++; d.aliased > maxAliased {
			d.aborted = true
			d.problem(n, path, "the aliases of the file expand to more than %d values", maxAliased)
			return
		}
	}
	if n.Kind == yaml.AliasNode {
		if slices.Contains(d.open, n.Alias) {
			d.problem(n, path, "the alias *%s contains itself", n.Value)
			return
		}
		d.open = append(d.open, n.Alias)
		d.value(n.Alias, v, path)
		d.open = d.open[:len(d.open)-1]
		return
	}
	if n.Style&yaml.TaggedStyle != 0 {
		d.problem(n, path, "YAML tags (%s) are not supported", n.Tag)
		return
	}
	null := n.Kind == yaml.ScalarNode && n.Tag == "!!null"

	if _, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok || IsScalar(v.Type()) {
		d.scalar(n, v, path, null)
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		if null {
			v.SetZero()
			return
		}
		if v.IsNil() {
			v.Set(fresh(v.Type().Elem()).Addr())
		}
		d.value(n, v.Elem(), path)
	case reflect.Struct:
		switch {
		case null: // a section whose keys are all commented out
		case n.Kind != yaml.MappingNode:
			d.problem(n, path, "must be a section of keys, not %s", shape(n))
		default:
			d.section(n, v, path)
		}
	case reflect.Map:
		switch {
		case null:
		case n.Kind != yaml.MappingNode:
			d.problem(n, path, "must be a section of names and values, not %s", shape(n))
		default:
			d.mapping(n, v, path)
		}
	case reflect.Slice:
		switch {
		case null:
			d.problem(n, path, "has no value; write [] for an empty list")
		case n.Kind != yaml.SequenceNode:
			d.problem(n, path, "must be a list, not %s", shape(n))
		default:
			// The file's list stands for itself: nothing of the default one remains.
			list := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
			for i, item := range n.Content {
				element := list.Index(i)
				element.Set(fresh(element.Type()))
				itemPath := fmt.Sprintf("%s[%d]", path, i)
				d.lines[itemPath] = item.Line
				d.value(item, element, itemPath)
				if d.aborted {
					return
				}
			}
			v.Set(list)
		}
	}
}

// fresh returns a new, settable value of type t with its defaults.
func fresh(t reflect.Type) reflect.Value {
	p := reflect.New(t)
	if d, ok := p.Interface().(Defaulter); ok {
		d.SetDefaults()
	}
	return p.Elem()
}

// keys calls f for each pair of the mapping n whose key is text, given once.
func (d *decoder) keys(n *yaml.Node, path string, f func(key, value *yaml.Node, keyPath string)) {
	first := map[string]int{}
	for i := 0; i+1 < len(n.Content) && !d.aborted; i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if key.Kind == yaml.AliasNode {
			key = key.Alias
		}
		keyPath := key.Value
		if path != "" {
			keyPath = path + "." + key.Value
		}
		switch line, again := first[key.Value]; {
		case key.Kind != yaml.ScalarNode || key.Tag == "!!null":
			d.problem(n.Content[i], path, "a key must be a word, not %s", shape(key))
		case key.Tag == "!!merge":
			d.problem(key, path, "merge keys (<<) are not supported; use an alias for a whole value")
		case again:
			d.problem(key, keyPath, "is given twice, first on line %d", line)
		default:
			first[key.Value] = key.Line
			f(key, value, keyPath)
		}
	}
}

// section sets the fields of the struct v.
func (d *decoder) section(n *yaml.Node, v reflect.Value, path string) {
	fields, _ := Fields(v.Type()) // the type was checked before
	d.keys(n, path, func(key, value *yaml.Node, keyPath string) {
		i := slices.IndexFunc(fields, func(f Field) bool { return f.Key == key.Value })
		if i < 0 {
			d.problem(key, keyPath, "unknown key%s", d.suggest(key.Value, fields))
			return
		}
		d.lines[keyPath] = key.Line
		d.value(value, v.FieldByIndex(fields[i].Index), keyPath)
	})
}

// mapping sets entries of the map v. Entries that the file does not name stay;
// one that it names keeps what the file does not say.
func (d *decoder) mapping(n *yaml.Node, v reflect.Value, path string) {
	// The default may be shared with other configurations: it is not changed.
	merged := reflect.MakeMap(v.Type())
	for it := v.MapRange(); it.Next(); {
		merged.SetMapIndex(it.Key(), it.Value())
	}
	d.keys(n, path, func(key, value *yaml.Node, keyPath string) {
		name := reflect.ValueOf(key.Value).Convert(v.Type().Key())
		entry := fresh(v.Type().Elem())
		if old := merged.MapIndex(name); old.IsValid() {
			entry.Set(old)
		}
		d.lines[keyPath] = key.Line
		d.value(value, entry, keyPath)
		merged.SetMapIndex(name, entry)
	})
	v.Set(merged)
}

// suggest says what an unknown key may have been meant to be.
func (d *decoder) suggest(word string, fields []Field) string {
	allowed := make([]string, len(fields))
	for i, f := range fields {
		allowed[i] = f.Key
	}
	if near := nearest(word, allowed); near != "" {
		return fmt.Sprintf("; did you mean %q?", near)
	}
	if elsewhere := findKey(d.root, word, "", nil); elsewhere != "" {
		return fmt.Sprintf("; it belongs elsewhere: %s", elsewhere)
	}
	if len(allowed) == 0 {
		return ""
	}
	return "; known here: " + strings.Join(allowed, ", ")
}

// findKey returns the path of the first key called word in the sections of t.
func findKey(t reflect.Type, word, path string, above []reflect.Type) string {
	if t.Kind() != reflect.Struct || IsScalar(t) || slices.Contains(above, t) {
		return ""
	}
	fields, _ := Fields(t)
	for _, f := range fields {
		if f.Key == word {
			return path + f.Key
		}
	}
	for _, f := range fields {
		if found := findKey(f.Type, word, path+f.Key+".", append(above, t)); found != "" {
			return found
		}
	}
	return ""
}

// scalar sets a value that is written in one word.
func (d *decoder) scalar(n *yaml.Node, v reflect.Value, path string, null bool) {
	switch {
	case null:
		d.problem(n, path, "has no value")
		return
	case n.Kind != yaml.ScalarNode:
		d.problem(n, path, "must be %s, not %s", wanted(v.Type()), shape(n))
		return
	}
	text, referenced, problem := dereference(n.Value)
	if problem != "" {
		d.problem(n, path, "%s", problem)
		return
	}
	shown := strconv.Quote(clip(text))
	switch {
	case referenced:
		d.secrets = append(d.secrets, secretValue{text, n.Value})
		shown = "the value of " + n.Value
	case v.Type() == secretType:
		d.secrets = append(d.secrets, secretValue{text, mask})
		shown = mask
	}
	if v.Type() == secretType && text == mask {
		d.problem(n, path, "is the mask of a printed configuration, not a secret")
		return
	}
	// A quoted number is text; one from the environment cannot say what it is.
	quoted := !referenced && n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle) != 0
	if problem := setScalar(v, text, quoted, shown); problem != "" {
		d.problem(n, path, "%s", problem)
	}
}

// setScalar parses text into v and returns what is wrong with it, if anything.
func setScalar(v reflect.Value, text string, quoted bool, shown string) string {
	if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		if err := u.UnmarshalText([]byte(text)); err != nil {
			return strings.ReplaceAll(err.Error(), "\n", "; ")
		}
		return ""
	}
	want := wanted(v.Type())
	if v.Type() == durationType {
		x, err := time.ParseDuration(text)
		if err != nil {
			return fmt.Sprintf("%s is not %s", shown, want)
		}
		v.SetInt(int64(x))
		return ""
	}
	kind := v.Kind()
	if quoted && kind != reflect.String {
		return fmt.Sprintf("must be %s, not the text %s", want, shown)
	}
	switch kind {
	case reflect.String:
		if c, ok := v.Interface().(Chooser); ok && !slices.Contains(c.Choices(), text) {
			problem := fmt.Sprintf("%s is not %s", shown, want)
			if near := nearest(text, c.Choices()); near != "" {
				problem += fmt.Sprintf("; did you mean %q?", near)
			}
			return problem
		}
		v.SetString(text)
	case reflect.Bool:
		if text != "true" && text != "false" {
			return fmt.Sprintf("%s is not %s", shown, want)
		}
		v.SetBool(text == "true")
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		x, err := strconv.ParseInt(text, 10, v.Type().Bits())
		if err != nil {
			return fmt.Sprintf("%s is not %s", shown, want)
		}
		v.SetInt(x)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		x, err := strconv.ParseUint(text, 10, v.Type().Bits())
		if err != nil {
			return fmt.Sprintf("%s is not %s", shown, want)
		}
		v.SetUint(x)
	case reflect.Float32, reflect.Float64:
		x, err := strconv.ParseFloat(text, v.Type().Bits())
		if err != nil || math.IsInf(x, 0) || math.IsNaN(x) {
			return fmt.Sprintf("%s is not %s", shown, want)
		}
		v.SetFloat(x)
	}
	return ""
}

// wanted names what a scalar of type t is written as.
func wanted(t reflect.Type) string {
	if t == durationType {
		return "a duration (a number with a unit: 300ms, 5s, 1h30m)"
	}
	if t.Implements(chooserType) {
		return oneOf(reflect.Zero(t).Interface().(Chooser).Choices())
	}
	if reflect.PointerTo(t).Implements(textType) {
		return "one value"
	}
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Float32, reflect.Float64:
		return "a number"
	case reflect.Int8, reflect.Int16, reflect.Int32:
		return fmt.Sprintf("a whole number from %d to %d", -1<<(t.Bits()-1), 1<<(t.Bits()-1)-1)
	case reflect.Int, reflect.Int64:
		return "a whole number"
	case reflect.Uint8, reflect.Uint16, reflect.Uint32:
		return fmt.Sprintf("a whole number from 0 to %d", uint64(1)<<t.Bits()-1)
	case reflect.Uint, reflect.Uint64:
		return "a whole number, not negative"
	}
	return "text"
}

// shape names what kind of node n is. It does not quote a scalar, which may be a
// secret in the wrong place.
func shape(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.MappingNode:
		return "a section of keys"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case n.Kind == yaml.AliasNode:
		return "an alias"
	case n.Tag == "!!null":
		return "nothing"
	}
	return "a single value"
}

// clip shortens a value to what fits into a message.
func clip(s string) string {
	const most = 60
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "..."
}
