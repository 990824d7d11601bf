package session

import (
	"testing"

	"weir/internal/media"
	"weir/internal/rtmp"
	"weir/internal/vhost"
)

// Players over RTMP are sent to with system calls that they have in common, as those
// over HTTP are: nodes that pull from an origin are such players.
func TestRTMPPlayersAreSentToTogether(t *testing.T) {
	const players, frames = 8, 20
	n := start(t, func(o *Options, _ *Door) { o.Shards = 1 })
	key := vhost.DefaultName + "/live/cam"
	_, publisher := n.role.live(t, key)
	var all []*rtmp.Client
	for range players {
		c, err := n.play("live/cam", "")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		all = append(all, c)
	}
	await := func(ms uint32) {
		for _, c := range all {
			for {
				tag, err := c.ReadTag()
				if err != nil {
					t.Fatal(err)
				}
				if tag.Kind() == media.Video && tag.Time() >= ms {
					break
				}
			}
		}
	}
	await(0)
	count := func(name string) uint64 { return n.set.GetOrCreateCounter(name).Get() }
	for i := range uint32(frames) {
		tag := media.NewTag(media.Video, 40*(i+1), 100)
		copy(tag.Body(), "\x27\x01\x00\x00\x00frame")
		if err := publisher.Append(tag); err != nil {
			t.Fatal(err)
		}
		await(40 * (i + 1))
	}
	n.eventually("all sends are counted", func() bool { return count("weir_sends_total") >= players*frames })
	if sends, calls := count("weir_sends_total"), count("weir_send_calls_total"); calls > sends/2 {
		t.Errorf("%d sends took %d system calls", sends, calls)
	}
}
