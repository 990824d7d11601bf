package edge

import (
	"strings"
	"testing"

	"weir/internal/vhost"
)

// An edge that has itself among its upstreams is told so, and by which of its
// addresses; one beside another node on the same machine is not.
func TestUpstreamIsTheEdgeItself(t *testing.T) {
	f := func(listen, advertise, upstream, want string) {
		t.Helper()
		c := Default()
		c.RTMP.Listen, c.HTTP.Listen, c.Advertise.RTMP = listen, "127.0.0.1:8080", advertise
		c.Vhosts["a.example"] = vhost.Default()
		v := vhost.Default()
		v.Upstreams = []string{"rtmp://10.0.0.11:1935", upstream}
		c.Vhosts["b.example"] = v
		got := ""
		if err := c.Validate(); err != nil {
			got = err.Error()
		}
		if want != "" {
			want = "vhosts.b.example.upstreams[1]: " + upstream + " is this edge itself, by " + want
		}
		if got != want {
			t.Errorf("listen %s, advertise %q, upstream %s: %q, want %q", listen, advertise, upstream, got, want)
		}
	}
	all := "rtmp.listen (:1935)"
	f(":1935", "", "rtmp://127.0.0.1:1935", all)
	f(":1935", "", "rtmp://127.0.0.1", all)
	f(":1935", "", "127.1.2.3:1935", all)
	f(":1935", "", "rtmp://LocalHost:1935", all)
	f(":1935", "", "rtmp://[::1]:1935", all)
	f(":1935", "", "rtmp://0.0.0.0:1935", all)
	f("0.0.0.0:1935", "", "rtmp://[::]:1935", "rtmp.listen (0.0.0.0:1935)")
	f("[::]:1935", "", "rtmp://127.0.0.1:1935", "rtmp.listen ([::]:1935)")
	f("127.0.0.1:1935", "", "rtmp://localhost:1935", "rtmp.listen (127.0.0.1:1935)")
	f("localhost:1935", "", "rtmp://127.0.0.1:1935", "rtmp.listen (localhost:1935)")
	f("10.0.0.5:1935", "", "rtmp://10.0.0.5:1935", "rtmp.listen (10.0.0.5:1935)")
	f("10.0.0.5:1935", "", "rtmp://[::ffff:10.0.0.5]:1935", "rtmp.listen (10.0.0.5:1935)")
	f(":1935", "", "http://127.0.0.1:8080", "http.listen (127.0.0.1:8080)")
	f(":1935", "10.0.0.5:1935", "rtmp://10.0.0.5:1935", "advertise.rtmp (10.0.0.5:1935)")
	f(":1935", "Edge-1.example:1936", "rtmp://edge-1.example.:1936", "advertise.rtmp (Edge-1.example:1936)")

	f(":1936", "", "rtmp://127.0.0.1:1935", "") // an origin on the same machine
	f(":1936", "", "rtmp://localhost", "")
	f(":1935", "", "rtmp://10.0.0.12:1935", "")
	f(":1935", "", "rtmp://origin:1935", "")
	f("127.0.0.1:1935", "", "rtmp://127.0.0.2:1935", "")
	f("10.0.0.5:1935", "", "rtmp://127.0.0.1:1935", "")
	f("10.0.0.5:1935", "", "rtmp://10.0.0.6:1935", "")
	f(":1935", "edge-1.example:1935", "rtmp://edge-1.example:1936", "")
	f(":1935", "edge-1.example:1935", "rtmp://edge-2.example:1935", "")
	f("127.0.0.1:0", "", "rtmp://127.0.0.1:1935", "")
}

// An upstream that is nonsense is said to be that, once.
func TestUpstreamThatIsNoAddress(t *testing.T) {
	c := Default()
	v := vhost.Default()
	v.Upstreams = []string{"rtmp://:1935"}
	c.Vhosts["b.example"] = v
	err := c.Validate()
	if err == nil || strings.Contains(err.Error(), "itself") {
		t.Errorf("%v", err)
	}
}
