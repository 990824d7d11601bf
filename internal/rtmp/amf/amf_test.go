package amf

import (
	"bytes"
	"encoding/hex"
	"errors"
	"math"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"github.com/yutopp/go-amf0"
	"pgregory.net/rapid"
)

func testLimits() Limits { return Limits{Depth: 8, Values: 512} }

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestDecode(t *testing.T) {
	f := func(in string, want ...Value) {
		t.Helper()
		got, err := Decode(unhex(t, in), testLimits())
		if err != nil || len(got) != len(want) {
			t.Errorf("%s: %v, %v; want %v", in, got, err, want)
			return
		}
		for i := range want {
			if !reflect.DeepEqual(got[i], want[i]) {
				t.Errorf("%s: value %d is %#v, want %#v", in, i, got[i], want[i])
			}
		}
		if err := Scan(unhex(t, in), testLimits()); err != nil {
			t.Errorf("%s: scan: %v", in, err)
		}
	}
	f("")
	f("00 3ff0000000000000 01 01 01 00 05 06 0d", Num(1), Bool(true), Bool(false), Value{}, Value{Kind: Undefined}, Value{Kind: Unsupported})
	f("02 0003 616263 02 0000", Str("abc"), Str(""))
	f("0c 00000003 616263", Str("abc"))
	f("0f 00000004 3c612f3e", Value{Kind: XML, Str: "<a/>"})
	f("07 0005", Value{Kind: Reference, Num: 5})
	f("0b 42751e3c5c000000 0000", Value{Kind: Date, Num: 1451225366528})
	f("03 0001 61 01 01 0001 62 05 0000 09", Obj(P("a", Bool(true)), P("b", Value{})))
	f("10 0002 436c 0001 61 05 000009", Value{Kind: Object, Str: "Cl", Props: []Property{P("a", Value{})}})
	f("0a 00000002 05 0101", Strict(Value{}, Bool(true)))
	f("0a 00000000", Value{Kind: StrictArray, Props: []Property{}})
	f("08 7fffffff 0001 61 05 000009", Value{Kind: ECMAArray, Props: []Property{P("a", Value{})}}) // the count is not believed
	f("03 0001 61 05", Obj(P("a", Value{})))                                                       // end mark left out
	f("03 0000 05 0000 09", Obj(P("", Value{})))                                                   // a property without a name
	f("11 00 11 01 11 02 11 03", Value{Kind: Undefined}, Value{}, Bool(false), Bool(true))
	f("11 04 7f 11 04 ffffffff 11 05 4000000000000000", Num(127), Num(-1), Num(2))
	f("11 06 07 616263", Str("abc"))

	bad := func(name, in string) {
		t.Helper()
		if v, err := Decode(unhex(t, in), testLimits()); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v, %v; want an error", name, v, err)
		}
		if err := Scan(unhex(t, in), testLimits()); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: scan: %v, want an error", name, err)
		}
	}
	bad("number cut short", "00 3ff0")
	bad("string cut short", "02 0004 616263")
	bad("long string of 4 GiB", "0c ffffffff 61")
	bad("array of 2^31 elements", "0a 7fffffff 05")
	bad("array of 2^32-1 elements", "0a ffffffff 0505")
	bad("property without a value", "03 0001 61")
	bad("name cut short", "03 00")
	bad("movie clip", "04")
	bad("record set", "0e")
	bad("object end alone", "09")
	bad("marker of nothing", "ff")
	bad("nested objects", strings.Repeat("03 0001 61 ", 9)+"05")
	bad("nested arrays", strings.Repeat("0a 00000001 ", 9)+"05")
	bad("too many values", "0a 00000200"+strings.Repeat("05", 512))
	bad("AMF3 object", "11 0a 0b 01")
	bad("AMF3 string reference", "11 06 02")
	bad("AMF3 string cut short", "11 06 09 61")
	bad("AMF3 nothing", "11")
	bad("AMF3 integer cut short", "11 04 ff")
	f(strings.Repeat("0a 00000001 ", 8)+"05", nest(8))
}

func nest(depth int) Value {
	if depth == 0 {
		return Value{}
	}
	return Strict(nest(depth - 1))
}

// TestBombs: inputs that took gigabytes or the stack elsewhere cost nothing here.
func TestBombs(t *testing.T) {
	f := func(name string, in []byte) {
		t.Helper()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := Decode(in, testLimits())
		runtime.ReadMemStats(&after)
		if !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v, want an error", name, err)
		}
		if got := after.TotalAlloc - before.TotalAlloc; got > 16<<10 {
			t.Errorf("%s: %d bytes allocated before it was refused", name, got)
		}
	}
	f("15 MiB of nested arrays", bytes.Repeat([]byte{0x0a, 0, 0, 0, 1}, 3<<20))
	f("15 MiB of nested objects", bytes.Repeat([]byte{0x03, 0, 1, 'a'}, 15<<18))
	f("28 bytes for 2^31 elements", append([]byte{0x0a, 0x7f, 0xff, 0xff, 0xff}, make([]byte, 23)...))
	f("64 KiB of nulls", bytes.Repeat([]byte{0x05}, 64<<10))
}

// TestDecodeMemory: what the docstring promises about memory.
func TestDecodeMemory(t *testing.T) {
	f := func(name string, in []byte, values int) {
		t.Helper()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := Decode(in, testLimits())
		runtime.ReadMemStats(&after)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		// Size classes of the allocator round up by an eighth at most, plus small change.
		if got, want := after.TotalAlloc-before.TotalAlloc, uint64(len(in)+80*values)*5/4+2<<10; got > want {
			t.Errorf("%s: %d bytes allocated, want at most %d", name, got, want)
		}
	}
	f("one string of 64 KiB", Append(nil, Value{Kind: XML, Str: strings.Repeat("x", 64<<10)}), 1)
	f("512 nulls", bytes.Repeat([]byte{0x05}, 512), 512)
	f("an array of 511", append([]byte{0x0a, 0, 0, 1, 0xff}, bytes.Repeat([]byte{0x05}, 511)...), 512)
	wide := Value{Kind: Object}
	for range 500 {
		wide.Props = append(wide.Props, P(strings.Repeat("n", 100), Value{}))
	}
	f("an object of 500", Append(nil, wide), 501)
}

func TestAppend(t *testing.T) {
	f := func(v Value, want string) {
		t.Helper()
		if got := Append(nil, v); !bytes.Equal(got, unhex(t, want)) {
			t.Errorf("%v: %x, want %s", v, got, want)
		}
	}
	f(Value{}, "05")
	f(Value{Kind: Undefined}, "06")
	f(Value{Kind: Unsupported}, "0d")
	f(Num(302), "00 4072e00000000000")
	f(Bool(true), "01 01")
	f(Str("abc"), "02 0003 616263")
	f(Obj(P("b", Value{}), P("a", Bool(false))), "03 0001 62 05 0001 61 01 00 0000 09")
	f(Value{Kind: Object, Str: "Cl"}, "10 0002 436c 0000 09")
	f(Value{Kind: ECMAArray, Props: []Property{P("a", Value{})}}, "08 00000001 0001 61 05 0000 09")
	f(Strict(Num(0), Str("")), "0a 00000002 00 0000000000000000 02 0000")
	f(Value{Kind: Date, Num: 0}, "0b 0000000000000000 0000")
	f(Value{Kind: XML, Str: "x"}, "0f 00000001 78")
	f(Value{Kind: Reference, Num: 7}, "07 0007")
	f(Str(strings.Repeat("a", 65536)), "0c 00010000"+strings.Repeat("61", 65536))
}

func value(depth int) *rapid.Generator[Value] {
	return rapid.Custom(func(t *rapid.T) Value {
		kinds := []Kind{Null, Undefined, Number, Boolean, String, Date, XML, Reference, Unsupported}
		if depth > 0 {
			kinds = append(kinds, Object, ECMAArray, StrictArray)
		}
		v := Value{Kind: rapid.SampledFrom(kinds).Draw(t, "kind")}
		switch v.Kind {
		case Number, Date:
			v.Num = rapid.Float64().Draw(t, "number")
		case Boolean:
			v = Bool(rapid.Bool().Draw(t, "bool"))
		case Reference:
			v.Num = float64(rapid.Uint16().Draw(t, "reference"))
		case String, XML:
			v.Str = rapid.String().Draw(t, "string")
		case Object:
			v.Str = rapid.StringMatching("[A-Z]?").Draw(t, "class")
			fallthrough
		case ECMAArray, StrictArray:
			v.Props = []Property{}
			for range rapid.IntRange(0, 4).Draw(t, "properties") {
				p := Property{Value: value(depth-1).Draw(t, "value")}
				if v.Kind != StrictArray {
					p.Name = rapid.StringN(1, 8, 20).Draw(t, "name")
				}
				v.Props = append(v.Props, p)
			}
		}
		return v
	})
}

func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := rapid.SliceOfN(value(3), 1, 3).Draw(t, "values")
		got, err := Decode(Append(nil, want...), Limits{Depth: 8, Values: 1 << 20})
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("%#v, %v; want %#v", got, err, want)
		}
	})
}

// TestPeer: go-amf0 reads what is written here.
func TestPeer(t *testing.T) {
	in := Obj(P("app", Str("live")), P("capabilities", Num(239)), P("fpad", Bool(false)), P("nothing", Value{}),
		P("list", Strict(Str("hvc1"), Num(2))), P("map", Value{Kind: ECMAArray, Props: []Property{P("k", Num(1))}}))
	var got any
	if err := amf0.NewDecoder(bytes.NewReader(Append(nil, in))).Decode(&got); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{"app": "live", "capabilities": 239.0, "fpad": false, "nothing": nil,
		"list": []any{"hvc1", 2.0}, "map": amf0.ECMAArray{"k": 1.0}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%#v, want %#v", got, want)
	}
}

func TestAccessors(t *testing.T) {
	o := Obj(P("s", Str("x")), P("n", Num(7)), P("b", Bool(true)))
	if o.Get("s").Text() != "x" || o.Get("n").Uint32() != 7 || !o.Get("b").True() {
		t.Errorf("%v %v %v", o.Get("s"), o.Get("n"), o.Get("b"))
	}
	if v := o.Get("none"); v.Kind != Undefined || v.Text() != "" || v.Uint32() != 0 || v.True() {
		t.Errorf("missing property: %v", v)
	}
	if v := Num(1).Get("s"); v.Kind != Undefined {
		t.Errorf("property of a number: %v", v)
	}
	for _, f := range []float64{math.NaN(), -1, math.Inf(1), 1 << 32} {
		if u := Num(f).Uint32(); u != 0 {
			t.Errorf("Uint32 of %v is %d", f, u)
		}
	}
}

func TestCutString(t *testing.T) {
	f := func(in []byte, rest string, ok bool) {
		t.Helper()
		if got, gotOK := CutString(in, "abc"); string(got) != rest || gotOK != ok {
			t.Errorf("%x: %q %v, want %q %v", in, got, gotOK, rest, ok)
		}
	}
	f([]byte("\x02\x00\x03abcdef"), "def", true)
	f([]byte("\x02\x00\x03abc"), "", true)
	f([]byte("\x02\x00\x03ab"), "", false)
	f([]byte("\x02\x00\x04abcd"), "", false)
	f([]byte("\x02\x00\x03abd"), "", false)
	f(nil, "", false)
}

func FuzzDecode(f *testing.F) {
	for _, s := range []string{
		"0200 04 6c697665 00 3ff0000000000000 03 0001 61 01 01 0000 09", "08 7fffffff 0001 61 05 000009", "0a 00000002 05 0101",
		"10 0002 436c 0001 61 05 000009", "11 06 07 616263 11 04 ffffffff", "0b 42751e3c5c000000 0000 0c 00000003 616263 07 0005",
	} {
		f.Add(unhex(f, s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		values, err := Decode(b, testLimits())
		if scan := Scan(b, testLimits()); (scan == nil) != (err == nil) {
			t.Fatalf("decode: %v, scan: %v", err, scan)
		}
		if err != nil {
			return
		}
		// What was read can be written, and reads the same then.
		w := Append(nil, values...)
		again, err := Decode(w, testLimits())
		if err != nil {
			t.Fatalf("%x written as %x: %v", b, w, err)
		}
		if !bytes.Equal(Append(nil, again...), w) {
			t.Fatalf("%x: %#v, then %#v", b, values, again)
		}
	})
}
