package ticket

import (
	"errors"
	"net/url"
	"strings"
	"testing"
	"time"
)

const stream = "__defaultVhost__/live/x"

var now = time.Unix(1_800_000_000, 0)

func TestTicket(t *testing.T) {
	k := NewKey("secret")
	want := Ticket{Node: "edge-1.a:b_c", Hops: 2, Expires: now.Add(Life)}
	text := k.Sign(stream, want)
	if url.QueryEscape(text) != text && strings.ReplaceAll(url.QueryEscape(text), "%3A", ":") != text {
		t.Errorf("%s has to be escaped", text)
	}
	got, err := k.Read(text, stream, now)
	if err != nil || got.Node != want.Node || got.Hops != want.Hops || !got.Expires.Equal(want.Expires) {
		t.Errorf("%+v, %v", got, err)
	}
	for name, c := range map[string]struct {
		key          Key
		text, stream string
		now          time.Time
		err          error
	}{
		"other secret":      {NewKey("other"), text, stream, now, ErrForged},
		"other stream":      {k, text, stream + "y", now, ErrForged},
		"other node":        {k, strings.Replace(text, "edge-1", "edge-2", 1), stream, now, ErrForged},
		"fewer hops":        {k, strings.Replace(text, "~2~", "~1~", 1), stream, now, ErrForged},
		"cut short":         {k, text[:len(text)-1], stream, now, ErrForged},
		"nothing":           {k, "", stream, now, ErrForged},
		"too late":          {k, text, stream, now.Add(Life), ErrExpired},
		"far in the future": {k, text, stream, now.Add(-2 * Life), ErrExpired},
		"no hops":           {k, k.Sign(stream, Ticket{"a", 0, now.Add(Life)}), stream, now, ErrForged},
		"node with a ~":     {k, k.Sign(stream, Ticket{"a~b", 1, now.Add(Life)}), stream, now, ErrForged},
	} {
		if got, err := c.key.Read(c.text, c.stream, c.now); !errors.Is(err, c.err) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

func TestTake(t *testing.T) {
	for query, want := range map[string][2]string{
		"":                                {"", ""},
		"a=b&c":                           {"a=b&c", ""},
		"weir-ticket=x":                   {"", "x"},
		"a=b&weir-ticket=x&c=d":           {"a=b&c=d", "x"},
		"weir-ticket=x&weir-ticket=y&a=b": {"a=b", "x"},
		"my_weir-ticket=x&weir-ticket=":   {"my_weir-ticket=x", ""},
	} {
		if rest, text := Take(query); rest != want[0] || text != want[1] {
			t.Errorf("%q: %q, %q", query, rest, text)
		}
	}
	if q := Put("a=b", "x"); q != "a=b&weir-ticket=x" {
		t.Error(q)
	}
	if q := Put("", "x"); q != "weir-ticket=x" {
		t.Error(q)
	}
}

func FuzzRead(f *testing.F) {
	k := NewKey("secret")
	f.Add(k.Sign(stream, Ticket{"edge-1", 1, now.Add(Life)}))
	f.Add("1~a~1~1800000030~AAAA")
	f.Fuzz(func(t *testing.T, text string) {
		got, err := k.Read(text, stream, now)
		if err == nil && k.Sign(stream, got) != text && !strings.Contains(text, "~0") && !strings.Contains(text, "~+") {
			t.Errorf("%q was read as %+v", text, got)
		}
		rest, _ := Take(text)
		if again, second := Take(rest); again != rest || second != "" {
			t.Errorf("a ticket is left in %q", rest)
		}
	})
}
