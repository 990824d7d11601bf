package configs

import (
	"encoding"
	"fmt"
	"reflect"
	"strings"
	"time"
)

// A Field is one key of a configuration struct.
type Field struct {
	Key   string       // the name in its yaml tag
	Type  reflect.Type // of the field
	Index []int        // for reflect.Value.FieldByIndex on the struct asked about
	Owner reflect.Type // the struct type that declares it; differs for inlined fields
	Name  string       // of the Go field
}

// Fields returns the keys of the struct type t in the order of declaration. Every
// exported field needs a yaml tag with a name; "-" leaves a field out and
// ",inline" puts the keys of a struct among those of its parent.
//
// A field may be a bool, an integer, a float, a string, a time.Duration, anything
// with UnmarshalText, a struct, a pointer, a list, or a map with string keys of
// these.
func Fields(t reflect.Type) ([]Field, error) {
	var fields []Field
	for i := range t.NumField() {
		f := t.Field(i)
		tag, tagged := f.Tag.Lookup("yaml")
		name, options, _ := strings.Cut(tag, ",")
		switch {
		case name == "-" || !f.IsExported() && !tagged:
		case !f.IsExported():
			return nil, fmt.Errorf("%s.%s has a yaml tag but is not exported", t, f.Name)
		case options == "inline" && f.Type.Kind() == reflect.Struct:
			inner, err := Fields(f.Type)
			if err != nil {
				return nil, err
			}
			for _, g := range inner {
				g.Index = append([]int{i}, g.Index...)
				fields = append(fields, g)
			}
		case name == "":
			return nil, fmt.Errorf("%s.%s has no name in a yaml tag", t, f.Name)
		case options != "" && options != "omitempty" && options != "flow":
			return nil, fmt.Errorf("%s.%s: the yaml tag option %q is not supported", t, f.Name, options)
		default:
			fields = append(fields, Field{Key: name, Type: f.Type, Index: []int{i}, Owner: t, Name: f.Name})
		}
	}
	seen := map[string]bool{}
	for _, f := range fields {
		if seen[f.Key] {
			return nil, fmt.Errorf("%s has the key %q twice", t, f.Key)
		}
		seen[f.Key] = true
	}
	return fields, nil
}

var (
	durationType = reflect.TypeFor[time.Duration]()
	secretType   = reflect.TypeFor[Secret]()
	textType     = reflect.TypeFor[encoding.TextUnmarshaler]()
	chooserType  = reflect.TypeFor[Chooser]()
)

// IsScalar reports whether values of type t are written as one YAML scalar.
func IsScalar(t reflect.Type) bool {
	if reflect.PointerTo(t).Implements(textType) {
		return true
	}
	switch t.Kind() {
	case reflect.Struct, reflect.Map, reflect.Slice, reflect.Pointer:
		return false
	}
	return true
}

// checkType reports a type that the decoder cannot fill: an error of the program.
func checkType(t reflect.Type) error {
	return checkTypes(t, map[reflect.Type]bool{})
}

func checkTypes(t reflect.Type, seen map[reflect.Type]bool) error {
	if seen[t] || reflect.PointerTo(t).Implements(textType) {
		return nil
	}
	seen[t] = true
	switch t.Kind() {
	case reflect.Struct:
		fields, err := Fields(t)
		for _, f := range fields {
			if err == nil {
				err = checkTypes(f.Type, seen)
			}
		}
		return err
	case reflect.Map:
		if t.Key().Kind() != reflect.String {
			return fmt.Errorf("%s: the keys of a map must be strings", t)
		}
		return checkTypes(t.Elem(), seen)
	case reflect.Slice, reflect.Pointer:
		return checkTypes(t.Elem(), seen)
	case reflect.Bool, reflect.String, reflect.Float32, reflect.Float64,
		reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return nil
	}
	return fmt.Errorf("%s: a configuration cannot hold values of this type", t)
}
