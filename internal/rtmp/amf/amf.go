// Package amf reads and writes AMF0 values, the language of RTMP commands.
//
// The reader is made for hostile input: depth, number of values and length of
// strings are bounded, and the memory that a value takes is proportional to the
// bytes that it came from. Objects keep the order of their properties in both
// directions, because some peers compare bytes.
//
// Format: Adobe AMF0, file format specification of 2007. Values behind the
// switch to AMF3 (marker 0x11) are read when they are scalars.
package amf

import (
	"encoding/binary"
	"fmt"
	"math"
)

// Kind is the type of a Value.
type Kind uint8

// The kinds of values. The zero value of Value is Null.
const (
	Null Kind = iota
	Undefined
	Number
	Boolean
	String // also long strings
	Object // also typed objects: Str is the class name then
	ECMAArray
	StrictArray // Props without names
	Date        // Num is milliseconds since 1970 UTC
	XML
	Reference // Num is the index of an earlier object, which is not looked up
	Unsupported
)

// Value is one AMF value. It shares no memory with the bytes it was read from.
type Value struct {
	Kind  Kind
	Num   float64 // Number, Date, Reference; Boolean as 0 or 1
	Str   string  // String, XML; class name of a typed Object
	Props []Property
}

// Property is one named value of an object.
type Property struct {
	Name  string
	Value Value
}

// Num returns a number.
func Num(f float64) Value { return Value{Kind: Number, Num: f} }

// Str returns a string.
func Str(s string) Value { return Value{Kind: String, Str: s} }

// Bool returns a boolean.
func Bool(b bool) Value {
	v := Value{Kind: Boolean}
	if b {
		v.Num = 1
	}
	return v
}

// Obj returns an object with the given properties in that order.
func Obj(props ...Property) Value { return Value{Kind: Object, Props: props} }

// Strict returns a strict array.
func Strict(values ...Value) Value {
	v := Value{Kind: StrictArray, Props: make([]Property, len(values))}
	for i := range values {
		v.Props[i].Value = values[i]
	}
	return v
}

// P returns a property.
func P(name string, v Value) Property { return Property{Name: name, Value: v} }

// Get returns the first property of that name; Undefined when v is no object or
// array or has none.
func (v Value) Get(name string) Value {
	if v.Kind == Object || v.Kind == ECMAArray {
		for i := range v.Props {
			if v.Props[i].Name == name {
				return v.Props[i].Value
			}
		}
	}
	return Value{Kind: Undefined}
}

// IsObject reports an object, typed or not, or an associative array.
func (v Value) IsObject() bool { return v.Kind == Object || v.Kind == ECMAArray }

// Text returns the string of a String, "" for every other kind.
func (v Value) Text() string {
	if v.Kind == String {
		return v.Str
	}
	return ""
}

// True reports a Boolean that is true.
func (v Value) True() bool { return v.Kind == Boolean && v.Num != 0 }

// Uint32 returns a Number that is a whole number in the range of uint32; 0 for
// every other value.
func (v Value) Uint32() uint32 {
	if v.Kind != Number || !(v.Num >= 0 && v.Num <= math.MaxUint32) {
		return 0
	}
	return uint32(v.Num)
}

// Markers of types (AMF0, section 2.1).
const (
	markNumber      = 0x00
	markBoolean     = 0x01
	markString      = 0x02
	markObject      = 0x03
	markMovieClip   = 0x04
	markNull        = 0x05
	markUndefined   = 0x06
	markReference   = 0x07
	markECMAArray   = 0x08
	markObjectEnd   = 0x09
	markStrictArray = 0x0A
	markDate        = 0x0B
	markLongString  = 0x0C
	markUnsupported = 0x0D
	markRecordSet   = 0x0E
	markXML         = 0x0F
	markTypedObject = 0x10
	markAMF3        = 0x11
)

// Append appends values to dst. Property names and class names of more than
// 65535 bytes are cut off there.
func Append(dst []byte, values ...Value) []byte {
	for i := range values {
		dst = appendValue(dst, &values[i])
	}
	return dst
}

func appendValue(dst []byte, v *Value) []byte {
	switch v.Kind {
	case Number:
		return appendNumber(append(dst, markNumber), v.Num)
	case Boolean:
		b := byte(0)
		if v.Num != 0 {
			b = 1
		}
		return append(dst, markBoolean, b)
	case String:
		if len(v.Str) <= math.MaxUint16 {
			return appendName(append(dst, markString), v.Str)
		}
		return appendLong(append(dst, markLongString), v.Str)
	case XML:
		return appendLong(append(dst, markXML), v.Str)
	case Object:
		if v.Str != "" {
			dst = appendName(append(dst, markTypedObject), v.Str)
		} else {
			dst = append(dst, markObject)
		}
		return appendProps(dst, v.Props)
	case ECMAArray:
		dst = binary.BigEndian.AppendUint32(append(dst, markECMAArray), uint32(len(v.Props)))
		return appendProps(dst, v.Props)
	case StrictArray:
		dst = binary.BigEndian.AppendUint32(append(dst, markStrictArray), uint32(len(v.Props)))
		for i := range v.Props {
			dst = appendValue(dst, &v.Props[i].Value)
		}
		return dst
	case Date:
		return append(appendNumber(append(dst, markDate), v.Num), 0, 0) // time zone, reserved
	case Reference:
		return binary.BigEndian.AppendUint16(append(dst, markReference), uint16(v.Num))
	case Undefined:
		return append(dst, markUndefined)
	case Unsupported:
		return append(dst, markUnsupported)
	}
	return append(dst, markNull)
}

func appendProps(dst []byte, props []Property) []byte {
	for i := range props {
		dst = appendName(dst, props[i].Name)
		dst = appendValue(dst, &props[i].Value)
	}
	return append(dst, 0, 0, markObjectEnd)
}

func appendNumber(dst []byte, f float64) []byte {
	return binary.BigEndian.AppendUint64(dst, math.Float64bits(f))
}

func appendName(dst []byte, s string) []byte {
	s = s[:min(len(s), math.MaxUint16)]
	return append(binary.BigEndian.AppendUint16(dst, uint16(len(s))), s...)
}

func appendLong(dst []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint32(dst, uint32(len(s))), s...)
}

// String formats v for messages to people.
func (v Value) String() string {
	switch v.Kind {
	case Null:
		return "null"
	case Undefined:
		return "undefined"
	case Number:
		return fmt.Sprint(v.Num)
	case Boolean:
		return fmt.Sprint(v.Num != 0)
	case String:
		return fmt.Sprintf("%q", v.Str)
	case Object, ECMAArray:
		return fmt.Sprintf("object of %d properties", len(v.Props))
	case StrictArray:
		return fmt.Sprintf("array of %d values", len(v.Props))
	}
	return fmt.Sprintf("value of kind %d", v.Kind)
}
