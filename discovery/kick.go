package discovery

import (
	"context"
	"encoding/json"
	"fmt"
	"time"
)

// Kicker is a directory through which an operator ends the publisher of a stream,
// wherever in the cluster it is.
//
// Kick ends every ownership of the stream that began before it, and keeps everybody
// from claiming the stream for the time of the ban, which takes the place of that of
// an earlier kick: a kick without one lifts it. Watchers are told, and so is an owner
// that renews: it cuts its publisher. The error is ErrNotFound if nobody owns the
// stream, and there is no ban to lay on it or to lift.
type Kicker interface {
	Kick(ctx context.Context, k Kick) (Kicked, error)
}

// Kick asks for the end of a stream's publisher.
type Kick struct {
	Stream string
	Ban    time.Duration // from 0 to MaxBan
	Reason string        // for logs, and for whoever is refused; at most 256 bytes
}

// MaxBan is the longest time of a ban.
const MaxBan = 7 * 24 * time.Hour

// Kicked says what a Kick did. It is a value, as Lease is.
type Kicked struct {
	Stream string
	// Epoch: ownerships up to this one are over. Later ones are larger.
	Epoch uint64
	// Until is when the ban ends, on the clock of whoever holds this value. It is in
	// the past if there is none.
	Until  time.Time
	Reason string
	// Owner is the node that had the stream, empty if none had. Only who kicked is told.
	Owner string
}

// Banned reports whether nobody may claim the stream now.
func (k *Kicked) Banned(now time.Time) bool { return now.Before(k.Until) }

// ends reports whether an ownership of that epoch is one that must end.
func (k *Kicked) ends(epoch uint64, now time.Time) bool { return epoch <= k.Epoch || k.Banned(now) }

// BannedError says that an operator lets nobody publish the stream for some time.
type BannedError struct{ Kicked Kicked }

// Error says for how long, and why.
func (e *BannedError) Error() string {
	text := fmt.Sprintf("stream %s is banned for %v", e.Kicked.Stream, e.Left())
	if e.Kicked.Reason != "" {
		text += ": " + e.Kicked.Reason
	}
	return text
}

// Left returns how long the ban still lasts, in whole seconds from 1 on.
func (e *BannedError) Left() time.Duration {
	return max(time.Second, time.Until(e.Kicked.Until).Round(time.Second))
}

func (k Kick) check() error {
	if err := CheckStream(k.Stream); err != nil {
		return err
	}
	if k.Ban < 0 || k.Ban > MaxBan {
		return fmt.Errorf("%w: a ban of %v is not between 0s and %v", ErrInvalid, k.Ban, MaxBan)
	}
	return checkReason(k.Reason)
}

func (k *Kicked) check() error {
	if err := CheckStream(k.Stream); err != nil {
		return err
	}
	return checkReason(k.Reason)
}

func checkReason(reason string) error {
	if len(reason) > maxValueLen || !printable(reason) {
		return fmt.Errorf("%w: the reason is longer than %d bytes or not printable", ErrInvalid, maxValueLen)
	}
	return nil
}

type kickJSON struct {
	Stream string `json:"stream"`
	BanMs  int64  `json:"ban_ms,omitempty"`
	Reason string `json:"reason,omitempty"`
}

type kickedJSON struct {
	Stream string `json:"stream"`
	Epoch  uint64 `json:"epoch"`
	BanMs  int64  `json:"ban_ms"`
	Reason string `json:"reason,omitempty"`
	Owner  string `json:"owner,omitempty"`
}

// MarshalJSON writes the kick with the time that its ban has left from now on.
func (k Kicked) MarshalJSON() ([]byte, error) {
	return json.Marshal(kickedJSON{k.Stream, k.Epoch, max(0, time.Until(k.Until).Milliseconds()), k.Reason, k.Owner})
}

// UnmarshalJSON reads what MarshalJSON wrote; Until is on the local clock.
func (k *Kicked) UnmarshalJSON(data []byte) error {
	var w kickedJSON
	if err := json.Unmarshal(data, &w); err != nil {
		return fmt.Errorf("decode kick: %w", err)
	}
	ban, err := fromMillis(w.BanMs)
	if err != nil {
		return fmt.Errorf("decode kick: %w", err)
	}
	*k = Kicked{w.Stream, w.Epoch, time.Now().Add(ban), w.Reason, w.Owner}
	return nil
}

// kicks are those of one directory that are not past yet. Whoever has it guards it.
type kicks map[string]*kickRecord

type kickRecord struct {
	Kicked
	at time.Time // when it was made or heard of
}

// put notes a kick.
func (ks kicks) put(k Kicked, now time.Time) { ks[k.Stream] = &kickRecord{k, now} }

// ban returns the ban that is on a stream, as an error, or nil.
func (ks kicks) ban(stream string, now time.Time) error {
	if k := ks[stream]; k != nil && k.Banned(now) {
		return &BannedError{k.Kicked}
	}
	return nil
}

// ended returns the kick that has ended an ownership of that epoch, or nil.
func (ks kicks) ended(stream string, epoch uint64, now time.Time) *Kicked {
	if k := ks[stream]; k != nil && k.ends(epoch, now) {
		own := k.Kicked
		return &own
	}
	return nil
}

// sweep forgets those that were made longer ago than keep, and whose ban is over.
func (ks kicks) sweep(keep time.Duration, now time.Time) {
	for stream, k := range ks {
		if !k.Banned(now) && now.Sub(k.at) >= keep {
			delete(ks, stream)
		}
	}
}
