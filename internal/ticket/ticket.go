// Package ticket makes the notes that a node gives to a client that it sends to another
// one: for whom the client was meant, for which stream, and how often it has been sent
// on. They are signed with the secret of the cluster, so that nobody else can write
// one, and end after half a minute.
package ticket

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Param is the parameter of a URL's query that carries a ticket.
const Param = "weir-ticket"

// Life is how long a ticket is good.
const Life = 30 * time.Second

// maxHops bounds what is read.
const maxHops = 99

// Ticket is what a note says.
type Ticket struct {
	Node    string    // id of the node that the client is sent to
	Hops    int       // how often it has been sent on, this time included; 1 to 99
	Expires time.Time // to the second
}

// Key signs tickets. Nodes with the same secret can read each other's.
type Key struct{ mac [sha256.Size]byte }

// NewKey returns the key of a secret. With an empty one everybody can write tickets:
// a closed network, where everybody may tell discovery anything, too.
func NewKey(secret string) Key {
	// A key of its own, so that a ticket helps nobody to guess what else the secret is for.
	h := hmac.New(sha256.New, []byte(secret))
	h.Write([]byte("weir hop ticket 1"))
	var k Key
	h.Sum(k.mac[:0])
	return k
}

// Sign returns the text of a ticket for a stream (vhost/app/name). It has no byte that
// would have to be escaped in a query.
func (k Key) Sign(stream string, t Ticket) string {
	body := fmt.Sprintf("1~%s~%d~%d", t.Node, t.Hops, t.Expires.Unix())
	return body + "~" + k.sum(stream, body)
}

// sum returns the signature, of 128 bits.
func (k Key) sum(stream, body string) string {
	h := hmac.New(sha256.New, k.mac[:])
	h.Write([]byte(body))
	h.Write([]byte{0})
	h.Write([]byte(stream))
	return base64.RawURLEncoding.EncodeToString(h.Sum(nil)[:16])
}

// Errors of Read.
var (
	ErrForged  = errors.New("not a ticket of this cluster for this stream")
	ErrExpired = errors.New("ticket has expired")
)

// Read returns what a ticket for a stream says at now.
func (k Key) Read(text, stream string, now time.Time) (Ticket, error) {
	cut := strings.LastIndexByte(text, '~')
	if cut < 0 || len(text) > 256 || !hmac.Equal([]byte(text[cut+1:]), []byte(k.sum(stream, text[:cut]))) {
		return Ticket{}, ErrForged
	}
	parts := strings.Split(text[:cut], "~")
	if len(parts) != 4 || parts[0] != "1" {
		return Ticket{}, ErrForged
	}
	hops, err := strconv.Atoi(parts[2])
	unix, terr := strconv.ParseInt(parts[3], 10, 64)
	if err != nil || terr != nil || hops < 1 || hops > maxHops {
		return Ticket{}, ErrForged
	}
	t := Ticket{Node: parts[1], Hops: hops, Expires: time.Unix(unix, 0)}
	// The clocks of two nodes need not agree to the second, and a far one helps nobody.
	if left := t.Expires.Sub(now); left <= 0 || left > 2*Life {
		return Ticket{}, ErrExpired
	}
	return t, nil
}

// Take cuts the ticket out of a query (without "?"), so that it goes no further, and
// returns it; "" if there is none.
func Take(query string) (rest, text string) {
	if !strings.Contains(query, Param+"=") {
		return query, ""
	}
	var kept []string
	for part := range strings.SplitSeq(query, "&") {
		if v, ok := strings.CutPrefix(part, Param+"="); ok {
			if text == "" {
				text = v
			}
			continue
		}
		kept = append(kept, part)
	}
	return strings.Join(kept, "&"), text
}

// Put adds a ticket to a query.
func Put(query, text string) string {
	if query == "" {
		return Param + "=" + text
	}
	return query + "&" + Param + "=" + text
}
