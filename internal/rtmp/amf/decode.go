package amf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// Limits bound what Decode accepts.
type Limits struct {
	Depth  int // nesting of objects and arrays; a bare scalar has depth 0
	Values int // values in all, properties and array elements included
}

// ErrFormat marks bytes that are not AMF or break a limit.
var ErrFormat = errors.New("bad AMF")

func formatError(format string, args ...any) error {
	return fmt.Errorf("decode AMF: %s: %w", fmt.Sprintf(format, args...), ErrFormat)
}

// Decode reads all values of b. Nothing is allocated before a scan of the whole
// of b has found it well-formed and within the limits; after that, the memory
// taken is at most 80 bytes per value plus the length of the strings.
func Decode(b []byte, limits Limits) ([]Value, error) {
	s := scanner{b: b, limits: limits}
	count := 0
	for len(s.b) > 0 {
		if err := s.value(0); err != nil {
			return nil, err
		}
		count++
	}
	values := make([]Value, count)
	d := decoder{b: b, limits: limits}
	for i := range values {
		d.value(&values[i])
	}
	return values, nil
}

// Scan checks that b holds whole values within the limits. It allocates nothing.
func Scan(b []byte, limits Limits) error {
	s := scanner{b: b, limits: limits}
	for len(s.b) > 0 {
		if err := s.value(0); err != nil {
			return err
		}
	}
	return nil
}

// CutString returns the string that b opens with and what follows it; ok is
// false when b opens with anything else. The string is compared, not copied.
func CutString(b []byte, s string) (rest []byte, ok bool) {
	if len(b) < 3+len(s) || b[0] != markString || int(binary.BigEndian.Uint16(b[1:])) != len(s) {
		return nil, false
	}
	if string(b[3:3+len(s)]) != s {
		return nil, false
	}
	return b[3+len(s):], true
}

// scanner steps over values. The decoder below relies on what it has checked.
type scanner struct {
	b      []byte
	limits Limits
	values int
}

func (s *scanner) skip(n int, what string) error {
	if n > len(s.b) {
		return formatError("%s is cut short: %d bytes wanted, %d left", what, n, len(s.b))
	}
	s.b = s.b[n:]
	return nil
}

// name steps over a string with a 16-bit length and returns that length.
func (s *scanner) name() (int, error) {
	if len(s.b) < 2 {
		return 0, formatError("string length is cut short")
	}
	n := int(binary.BigEndian.Uint16(s.b))
	s.b = s.b[2:]
	return n, s.skip(n, "string")
}

func (s *scanner) long() (uint32, error) {
	if len(s.b) < 4 {
		return 0, formatError("32-bit count is cut short")
	}
	n := binary.BigEndian.Uint32(s.b)
	s.b = s.b[4:]
	return n, nil
}

func (s *scanner) value(depth int) error {
	if s.values++; s.values > s.limits.Values {
		return formatError("more than %d values", s.limits.Values)
	}
	if len(s.b) == 0 {
		return formatError("value is missing")
	}
	mark := s.b[0]
	s.b = s.b[1:]
	switch mark {
	case markObject, markECMAArray, markStrictArray, markTypedObject:
		if depth >= s.limits.Depth {
			return formatError("nested deeper than %d", s.limits.Depth)
		}
	}
	switch mark {
	case markNull, markUndefined, markUnsupported:
		return nil
	case markNumber:
		return s.skip(8, "number")
	case markBoolean:
		return s.skip(1, "boolean")
	case markReference:
		return s.skip(2, "reference")
	case markDate:
		return s.skip(10, "date")
	case markString:
		_, err := s.name()
		return err
	case markLongString, markXML:
		n, err := s.long()
		if err != nil {
			return err
		}
		if uint64(n) > uint64(len(s.b)) {
			return formatError("string of %d bytes, %d left", n, len(s.b))
		}
		return s.skip(int(n), "string")
	case markObject:
		return s.props(depth)
	case markTypedObject:
		if _, err := s.name(); err != nil {
			return err
		}
		return s.props(depth)
	case markECMAArray:
		// The count is a hint that encoders get wrong: the end mark decides.
		if _, err := s.long(); err != nil {
			return err
		}
		return s.props(depth)
	case markStrictArray:
		n, err := s.long()
		if err != nil {
			return err
		}
		if uint64(n) > uint64(len(s.b)) { // an element has at least one byte
			return formatError("array of %d elements, %d bytes left", n, len(s.b))
		}
		for range n {
			if err := s.value(depth + 1); err != nil {
				return err
			}
		}
		return nil
	case markAMF3:
		return s.amf3()
	}
	return formatError("marker %#x", mark)
}

// props steps over named values up to the end mark. An object that the input
// ends in is taken as ended: some encoders leave the mark of the last one out.
func (s *scanner) props(depth int) error {
	for len(s.b) > 0 {
		n, err := s.name()
		if err != nil {
			return err
		}
		if n == 0 && len(s.b) > 0 && s.b[0] == markObjectEnd {
			s.b = s.b[1:]
			return nil
		}
		if err := s.value(depth + 1); err != nil {
			return err
		}
	}
	return nil
}

// Markers of AMF3 (Adobe AMF3, section 3.1) that are read.
const (
	amf3Undefined = 0x00
	amf3Null      = 0x01
	amf3False     = 0x02
	amf3True      = 0x03
	amf3Integer   = 0x04
	amf3Double    = 0x05
	amf3String    = 0x06
)

func (s *scanner) amf3() error {
	if len(s.b) == 0 {
		return formatError("AMF3 value is missing")
	}
	mark := s.b[0]
	s.b = s.b[1:]
	switch mark {
	case amf3Undefined, amf3Null, amf3False, amf3True:
		return nil
	case amf3Double:
		return s.skip(8, "AMF3 double")
	case amf3Integer, amf3String:
		u, n := uint29(s.b)
		if n == 0 {
			return formatError("AMF3 integer is cut short")
		}
		s.b = s.b[n:]
		if mark == amf3Integer {
			return nil
		}
		if u&1 == 0 {
			return formatError("AMF3 string reference")
		}
		return s.skip(int(u>>1), "AMF3 string")
	}
	return formatError("AMF3 marker %#x is not supported", mark)
}

// uint29 reads an AMF3 variable-length integer and returns its size in bytes,
// 0 when b is too short (section 1.3.1).
func uint29(b []byte) (uint32, int) {
	var u uint32
	for i := range min(len(b), 4) {
		if i == 3 {
			return u<<8 | uint32(b[3]), 4
		}
		u = u<<7 | uint32(b[i]&0x7f)
		if b[i]&0x80 == 0 {
			return u, i + 1
		}
	}
	return 0, 0
}

// decoder builds values from bytes that a scanner has passed.
type decoder struct {
	b      []byte
	limits Limits
}

func (d *decoder) take(n int) []byte {
	p := d.b[:n]
	d.b = d.b[n:]
	return p
}

func (d *decoder) name() string {
	n := binary.BigEndian.Uint16(d.take(2))
	return string(d.take(int(n)))
}

func (d *decoder) number() float64 {
	return math.Float64frombits(binary.BigEndian.Uint64(d.take(8)))
}

func (d *decoder) value(v *Value) {
	switch mark := d.take(1)[0]; mark {
	case markNull:
	case markUndefined:
		v.Kind = Undefined
	case markUnsupported:
		v.Kind = Unsupported
	case markNumber:
		v.Kind, v.Num = Number, d.number()
	case markBoolean:
		*v = Bool(d.take(1)[0] != 0)
	case markReference:
		v.Kind, v.Num = Reference, float64(binary.BigEndian.Uint16(d.take(2)))
	case markDate:
		v.Kind, v.Num = Date, d.number()
		d.take(2)
	case markString:
		v.Kind, v.Str = String, d.name()
	case markLongString, markXML:
		v.Kind = String
		if mark == markXML {
			v.Kind = XML
		}
		n := binary.BigEndian.Uint32(d.take(4))
		v.Str = string(d.take(int(n)))
	case markObject:
		v.Kind = Object
		d.props(v)
	case markTypedObject:
		v.Kind, v.Str = Object, d.name()
		d.props(v)
	case markECMAArray:
		v.Kind = ECMAArray
		d.take(4)
		d.props(v)
	case markStrictArray:
		v.Kind = StrictArray
		v.Props = make([]Property, binary.BigEndian.Uint32(d.take(4)))
		for i := range v.Props {
			d.value(&v.Props[i].Value)
		}
	case markAMF3:
		d.amf3(v)
	}
}

func (d *decoder) props(v *Value) {
	v.Props = make([]Property, 0, d.countProps())
	for len(d.b) > 0 {
		name := d.name()
		if name == "" && len(d.b) > 0 && d.b[0] == markObjectEnd {
			d.take(1)
			return
		}
		v.Props = append(v.Props, Property{Name: name})
		d.value(&v.Props[len(v.Props)-1].Value)
	}
}

// countProps counts the properties up to the end of the present object, so that
// their slice is made in its size. Depth bounds how often a byte is passed.
func (d *decoder) countProps() int {
	s := scanner{b: d.b, limits: d.limits}
	for count := 0; ; count++ {
		if len(s.b) == 0 {
			return count
		}
		n, err := s.name()
		if err != nil || n == 0 && len(s.b) > 0 && s.b[0] == markObjectEnd {
			return count
		}
		if s.value(0) != nil {
			return count
		}
	}
}

func (d *decoder) amf3(v *Value) {
	switch d.take(1)[0] {
	case amf3Undefined:
		v.Kind = Undefined
	case amf3Null:
	case amf3False:
		*v = Bool(false)
	case amf3True:
		*v = Bool(true)
	case amf3Double:
		v.Kind, v.Num = Number, d.number()
	case amf3Integer:
		u, n := uint29(d.b)
		d.take(n)
		*v = Num(float64(int32(u<<3) >> 3)) // sign-extend 29 bits
	case amf3String:
		u, n := uint29(d.b)
		d.take(n)
		*v = Str(string(d.take(int(u >> 1))))
	}
}
