package session

import (
	"errors"
	"testing"
)

// The line of a log that a refusal gets is one sentence, and says nothing twice.
func TestRefusalsReadWell(t *testing.T) {
	for _, c := range []struct{ text, cause, want string }{
		{"No upstream can be reached for this stream.", "", "No upstream can be reached for this stream."},
		{"No upstream can be reached for this stream.", "dial tcp: refused", "No upstream can be reached for this stream: dial tcp: refused"},
		{"The request goes in a circle.", "the request goes in a circle: through a to b", "the request goes in a circle: through a to b"},
		{"Taken.", "publish at rtmp://a: server answered BadName: Taken.", "publish at rtmp://a: server answered BadName: Taken."},
	} {
		r := &Refusal{Text: c.text}
		if c.cause != "" {
			r.Err = errors.New(c.cause)
		}
		if got := r.Error(); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}
