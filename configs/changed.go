package configs

import (
	"reflect"
)

// Changed returns the keys whose values differ between two configurations of the
// same type, pointers to structs as [Parse] fills them, in the order of
// declaration. Sections are looked into; a list or a map is one key. Secrets are
// compared and never shown.
func Changed(a, b any) []string {
	return changed(reflect.ValueOf(a).Elem(), reflect.ValueOf(b).Elem(), "")
}

func changed(a, b reflect.Value, path string) []string {
	fields, err := Fields(a.Type())
	if err != nil { // Parse has refused such a type
		return []string{path}
	}
	var keys []string
	for _, f := range fields {
		x, y, key := a.FieldByIndex(f.Index), b.FieldByIndex(f.Index), path+f.Key
		switch {
		case f.Type.Kind() == reflect.Struct && !IsScalar(f.Type):
			keys = append(keys, changed(x, y, key+".")...)
		case !reflect.DeepEqual(x.Interface(), y.Interface()):
			keys = append(keys, key)
		}
	}
	return keys
}

// Locate gives errors about keys of a document, in the form that [Validator]s
// return, the file and the lines of those keys. The document is good otherwise: it
// was parsed into the same kind of target before. into is filled anew.
func Locate(name string, data []byte, into any, err error) error {
	root, derr := document(name, data)
	if derr != nil {
		return derr
	}
	target := reflect.ValueOf(into).Elem()
	d := decoder{file: name, root: target.Type(), lines: map[string]int{"": root.Line}}
	d.value(root, target, "")
	d.validation(err)
	return d.result()
}
