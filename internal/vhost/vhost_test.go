package vhost

import (
	"errors"
	"net/url"
	"strings"
	"testing"

	"weir/configs"
	"weir/hls"
)

// table has the tenants a (alias a.example, Alias.Example), b and the default one.
func table() *Table {
	a, b := Default(), Default()
	a.Aliases = []string{"a.example", "Alias.Example"}
	b.Aliases = []string{"b.example"}
	return NewTable(Vhosts{"a": a, "B": b})
}

func TestFromRTMP(t *testing.T) {
	f := func(tcURL, app, name, want, query string) {
		t.Helper()
		got, err := table().FromRTMP(tcURL, app, name)
		if err != nil {
			got.Key.Vhost, got.Key.App, got.Key.Name = "error", "", ""
			if errors.Is(err, ErrUnknown) {
				got.Key.App = "unknown"
			} else if errors.Is(err, ErrBadName) {
				got.Key.App = "name"
			}
		}
		if got.Key.String() != want || got.Query != query {
			t.Errorf("FromRTMP(%q, %q, %q) = %s ? %s (%v), want %s ? %s", tcURL, app, name, got.Key, got.Query, err, want, query)
		}
	}
	const def = DefaultName + "/"
	// Clients.
	f("rtmp://127.0.0.1/live", "live", "cam", def+"live/cam", "")                                                            // OBS
	f("rtmp://127.0.0.1:1935/live", "live", "cam?key=K&x=1", def+"live/cam", "key=K&x=1")                                    // OBS, key behind the stream key
	f("rtmp://127.0.0.1/live?key=K", "live?key=K", "cam", def+"live/cam", "key=K")                                           // OBS, key behind the server
	f("rtmp://127.0.0.1/live?key=K", "live", "cam", def+"live/cam", "key=K")                                                 // query on tcUrl only
	f("rtmp://127.0.0.1/live?vhost=a", "live?vhost=a", "cam?key=K", "a/live/cam", "key=K&vhost=a")                           // both
	f("rtmp://127.0.0.1/live?key=K", "live?key=K", "cam?vhost=a", "a/live/cam", "vhost=a&key=K")                             // both, the other way
	f("rtmp://127.0.0.1:1935/live", "live/", "/cam/", def+"live/cam", "")                                                    // slashes around
	f("rtmp://127.0.0.1/live/eu", "live/eu", "cam", def+"live/eu/cam", "")                                                   // instance
	f("rtmp://127.0.0.1/live", "live", "eu/cam", def+"live/eu/cam", "")                                                      // the same by a client that splits elsewhere
	f("rtmp://up.test:1935/live", "live", "cam.flv", def+"live/cam", "")                                                     // SRS edge with an HTTP-FLV player
	f("rtmp://a.example/live", "live", "cam.flv?t=1", "a/live/cam", "t=1")                                                   // SRS edge, vhost by host
	f("", "live", "cam", def+"live/cam", "")                                                                                 // no tcUrl
	f("rtmp://a.example:99999999/%zz", "live", "cam", def+"live/cam", "")                                                    // no URL
	f("rtmp://127.0.0.1/live", "live", "flv:cam", def+"live/cam", "")                                                        // Flash players
	f("rtmp://127.0.0.1/live", "live", "mp4:cam.flv", def+"live/cam", "")                                                    //
	f("rtmp://127.0.0.1/live", "live", "mp4:flv:mp4:cam.flv.flv", def+"live/cam", "")                                        // one name, however often it was passed on
	f("rtmp://127.0.0.1/live", "live", "/flv:eu/flv:cam.flv/", def+"live/eu/cam", "")                                        //
	f("rtmp://127.0.0.1/live", "live", "my cam, übrig_1.2-3", def+"live/my cam, übrig_1.2-3", "")                            //
	f("rtmp://127.0.0.1/live", "live", "cam?a=b?c&d", def+"live/cam", "a=b?c&d")                                             //
	f("rtmp://127.0.0.1/live", "live", "cam?a=\r\nHost: x#\"é%20%zz", def+"live/cam", "a=%0D%0AHost:%20x%23%22%C3%A9%20%zz") // cannot break an HTTP request upstream
	// Vhosts: query, then host, then default.
	f("rtmp://A.EXAMPLE./live", "live", "cam", "a/live/cam", "")
	f("rtmp://alias.example:1935/live", "live", "cam", "a/live/cam", "")
	f("rtmp://b/live", "live", "cam", "B/live/cam", "")
	f("rtmp://other.example/live", "live", "cam", def+"live/cam", "")
	f("rtmp://[::1]:1935/live", "live", "cam", def+"live/cam", "")
	f("rtmp://a.example/live", "live", "cam?vhost=b.example", "B/live/cam", "vhost=b.example")
	f("rtmp://a.example/live", "live", "cam?domain=B", "B/live/cam", "domain=B")
	f("rtmp://a.example/live", "live", "cam?vhost="+DefaultName, def+"live/cam", "vhost="+DefaultName)
	f("rtmp://a.example/live", "live", "cam?vhost=", "a/live/cam", "")
	f("rtmp://127.0.0.1/live?vhost=a", "live", "cam", "a/live/cam", "vhost=a")
	f("rtmp://127.0.0.1/live", "live", "cam?vhost=%61&x", "a/live/cam", "vhost=%61&x")
	f("rtmp://127.0.0.1/live", "live", "cam?vhost=nobody", "error/unknown/", "")
	f("rtmp://a.example/live", "live", "cam?vhost=a;b", "error/unknown/", "")
	f("rtmp://a.example/live", "live", "cam?vhost=%zz", "error/unknown/", "")
	// Only one parameter names the vhost to the next node, too.
	f("rtmp://h/live", "live", "cam?vhost=a&vhost=b&domain=b&k=v&vhost=a", "a/live/cam", "vhost=a&k=v")
	f("rtmp://h/live", "live", "cam?domain=b&x&vhost=a", "a/live/cam", "x&vhost=a")
	f("rtmp://h/live?vhost=b", "live?vhost=b", "cam?domain=a", "B/live/cam", "vhost=b")
	f("rtmp://h/live", "live", "cam?vhos%74=b", def+"live/cam", "")
	// What cannot name a stream.
	for _, bad := range []string{
		"", "/", ".flv", "flv:", "..", ".", "../cam", "a//b", "a/../b", "a/./b", "a%2Fb", "a%00b", "a\x00b", "a\nb", "a\x7fb", "a\u0085b", "a\u202eb", "a\u2028b",
		"a\xffb", "a\ufffdb", `a\b`, "a#b", `a"b`, "a<b", strings.Repeat("x", MaxPath), "cam?" + strings.Repeat("x", MaxQuery+1), "cam?" + strings.Repeat("\n", MaxQuery/2),
	} {
		f("rtmp://127.0.0.1/live", "live", bad, "error/name/", "")
	}
	for _, bad := range []string{"", "/", "..", "live/..", "live//eu", "li\x00ve", "?key=K"} {
		f("rtmp://127.0.0.1/live", bad, "cam", "error/name/", "")
	}
}

func TestFromHTTP(t *testing.T) {
	f := func(host, path, query, want string) {
		t.Helper()
		got, err := table().FromHTTP(host, path, query)
		key := got.Key.String()
		if errors.Is(err, ErrUnknown) {
			key = "unknown"
		} else if errors.Is(err, ErrBadName) {
			key = "name"
		} else if err != nil {
			t.Errorf("an error of another kind: %v", err)
		}
		if key != want {
			t.Errorf("FromHTTP(%q, %q, %q) = %s (%v), want %s", host, path, query, key, err, want)
		}
	}
	const def = DefaultName + "/"
	f("", "/live/cam", "", def+"live/cam")
	f("127.0.0.1:8080", "/live/cam", "", def+"live/cam")
	f("a.example", "/live/cam", "", "a/live/cam")
	f("A.Example:8080", "/live/cam", "", "a/live/cam")
	f("a.example.:8080", "/live/cam", "", "a/live/cam")
	f("[::1]:8080", "/live/cam", "", def+"live/cam")
	f("[::1]", "/live/cam", "", def+"live/cam")
	f("::1", "/live/cam", "", def+"live/cam")
	f("a.example", "/live/cam", "vhost=b", "B/live/cam")
	f("a.example", "/live/cam", "domain=b", "B/live/cam")
	f("a.example", "/live/cam", "vhost=c", "unknown")
	f("a.example", "/live/eu/cam", "", "a/live/eu/cam")
	f("", "/live/cam.flv", "", def+"live/cam") // cam.flv.flv
	f("", "/live/flv:cam", "", def+"live/cam")
	f("", "/cam", "", "name")
	f("", "/live/", "", "name")
	f("", "//cam", "", "name")
	f("", "", "", "name")
	f("", "/live/%2e%2e/x", "", "name")
}

func TestKeptQuery(t *testing.T) {
	f := func(host, query, want string) {
		t.Helper()
		target, err := table().FromHTTP(host, "/live/cam", query)
		if err != nil {
			t.Fatal(err)
		}
		if got := target.KeptQuery(); got != want {
			t.Errorf("%s?%s: kept %q, want %q", host, query, got, want)
		}
		again, err := table().FromHTTP("elsewhere", "/live/cam", target.KeptQuery())
		if err != nil || again.Key != target.Key {
			t.Errorf("%s?%s: leads to %s (%v), not %s", host, query, again.Key, err, target.Key)
		}
	}
	f("", "", "")
	f("", "key=K&x", "key=K&x")
	f("a.example", "", "vhost=a")
	f("a.example", "key=K", "key=K&vhost=a")
	f("a.example", "vhost=&key=K", "key=K&vhost=a") // an empty one names none
	f("a.example", "vhost=a.example", "vhost=a.example")
	f("a.example", "domain=b.example&z", "domain=b.example&z")
	f("a.example", "vhost="+DefaultName, "vhost="+DefaultName)
}

// Two tenants may use the same names.
func TestTenantsHaveDifferentKeys(t *testing.T) {
	seen := map[string]string{}
	for _, host := range []string{"a.example", "b.example", "elsewhere"} {
		r, err := table().FromRTMP("rtmp://"+host+"/live", "live", "cam")
		if err != nil {
			t.Fatal(err)
		}
		h, err := table().FromHTTP(host, "/live/cam", "")
		if err != nil || h.Key != r.Key || h.Vhost.Name != r.Vhost.Name {
			t.Errorf("%s: %v over RTMP, %v over HTTP (%v)", host, r.Key, h.Key, err)
		}
		if other := seen[r.Key.String()]; other != "" {
			t.Errorf("%s and %s share %s", host, other, r.Key)
		}
		seen[r.Key.String()] = host
	}
}

func TestParseKey(t *testing.T) {
	for _, k := range []Key{{"a", "live", "cam"}, {DefaultName, "live/eu", "my cam"}} {
		if got, err := ParseKey(k.String()); err != nil || got != k {
			t.Errorf("ParseKey(%q) = %v, %v", k.String(), got, err)
		}
	}
	for _, s := range []string{"", "a", "a/", "a/b", "/live/cam", "a/live/", "a//cam", "a/live/cam.flv", "a/live/flv:cam", "a b/live/cam", "a/../cam", "a/live/c?m", "a/live/c\nm"} {
		if k, err := ParseKey(s); err == nil {
			t.Errorf("ParseKey(%q) = %v", s, k)
		}
	}
}

func FuzzTargets(f *testing.F) {
	f.Add("rtmp://a.example/live?x=y", "live", "cam?key=K", "vhost=a&x")
	f.Add("rtmp://[::1]/live", "live/eu", "mp4:flv:cam.flv.flv", "domain=%62")
	f.Add("", "", "/flv:a/b.flv/", "vhost=;&&=&vhost")
	f.Add("rtmp://h/%zz", "a?b", "c?d#e\x00", "\xff\n")
	f.Fuzz(func(t *testing.T, tcURL, app, name, query string) {
		check := func(got Target, err error) {
			if err != nil {
				if !errors.Is(err, ErrBadName) && !errors.Is(err, ErrUnknown) {
					t.Errorf("an error of another kind: %v", err)
				}
				return
			}
			if got.Vhost == nil || got.Vhost.Name != got.Key.Vhost || len(got.KeptQuery()) > MaxQuery {
				t.Errorf("target %+v", got)
			}
			if k, err := ParseKey(got.Key.String()); err != nil || k != got.Key {
				t.Errorf("ParseKey(%q) = %v, %v", got.Key, k, err)
			}
			kept := got.KeptQuery()
			u, err := url.Parse("http://h/?" + kept)
			if err != nil || u.RawQuery != kept || strings.ContainsAny(kept, " \r\n#") {
				t.Errorf("%q cannot be the query of a URL: %v", kept, err)
			}
			// The key's own URL leads to the key, on every way a node asks for it.
			full := got.Key.Name
			if kept != "" {
				full += "?" + kept
			}
			again, err := table().FromRTMP("rtmp://elsewhere/"+got.Key.App, got.Key.App, full)
			if err != nil || again.Key != got.Key || again.Query != kept {
				t.Errorf("%v over RTMP: %v, %v", got.Key, again.Key, err)
			}
			again, err = table().FromHTTP("elsewhere", "/"+got.Key.Path(), kept)
			if err != nil || again.Key != got.Key || again.Query != kept {
				t.Errorf("%v over HTTP: %v, %v", got.Key, again.Key, err)
			}
		}
		check(table().FromRTMP(tcURL, app, name))
		check(table().FromHTTP(app, name, query))
	})
}

func TestMayPublish(t *testing.T) {
	c := Default()
	if !c.MayPublish("") || !c.MayPublish("any") {
		t.Error("a vhost without keys refuses")
	}
	c.Publish.Keys = []configs.Secret{"first", "second"}
	for key, want := range map[string]bool{"first": true, "second": true, "": false, "firs": false, "firstx": false, "FIRST": false, "first\x00": false} {
		if c.MayPublish(key) != want {
			t.Errorf("MayPublish(%q) is %v", key, !want)
		}
	}
}

func TestParseUpstream(t *testing.T) {
	f := func(s, want string) {
		t.Helper()
		u, err := ParseUpstream(s)
		got := u.String()
		if err != nil {
			got = "error"
		}
		if got != want {
			t.Errorf("ParseUpstream(%q) = %s (%v), want %s", s, got, err, want)
		}
	}
	f("origin", "rtmp://origin:1935")
	f("origin:19350", "rtmp://origin:19350")
	f("rtmp://origin", "rtmp://origin:1935")
	f("RTMP://origin/", "rtmp://origin:1935")
	f("http://origin:8080", "http://origin:8080")
	f("http://origin", "http://origin:80")
	f("[::1]:1935", "rtmp://[::1]:1935")
	f("rtmp://[::1]", "rtmp://[::1]:1935")
	for _, bad := range []string{
		"", ":1935", "rtmp://", "rtmps://h", "https://h", "rtmp://h/live", "h/live", "rtmp://h?x=1", "rtmp://u:p@h", "h:0", "h:65536", "h:99999", "h:-1", "h:x", "::1", "rtmp://h#f", "a b",
	} {
		f(bad, "error")
	}
}

func TestValidate(t *testing.T) {
	good := Vhosts{"a.example": Default(), DefaultName: Default(), "C_1": Default()}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	f := func(v Vhosts, want ...string) {
		t.Helper()
		var got []string
		if err := v.Validate(); err != nil {
			got = strings.Split(err.Error(), "\n")
		}
		if len(got) != len(want) {
			t.Errorf("got\n%s\nwant beginnings\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			return
		}
		for i := range want {
			if !strings.HasPrefix(got[i], want[i]) {
				t.Errorf("got %q, want %q...", got[i], want[i])
			}
		}
	}
	with := func(change func(c *Config)) Config {
		c := Default()
		change(&c)
		return c
	}
	aliases := func(a ...string) Config { return with(func(c *Config) { c.Aliases = a }) }

	f(Vhosts{"a": with(func(c *Config) {
		c.Aliases = []string{"ok.example", "", "h:80", "a/b", "ä.example", "..", strings.Repeat("x", 254)}
		c.Upstreams = []string{"ok", "ftp://x"}
		c.Publish.Keys = []configs.Secret{"k", ""}
		c.Play.MaxPlayers, c.Play.MaxPlayersPerStream = -1, -1
		c.HLS.Window = -1
	})},
		`a.aliases[1]: `, `a.aliases[2]: "h:80" is not a host name`, `a.aliases[3]: `, `a.aliases[4]: `, `a.aliases[5]: `, `a.aliases[6]: `,
		`a.upstreams[1]: `, `a.publish.keys[1]: must not be empty`,
		`a.play.max_players: must not be negative`, `a.play.max_players_per_stream: must not be negative`, `a.hls.window: `)
	f(Vhosts{"no host": Default(), "": Default()}, `: "" is not a host name`, `no host: `)
	f(Vhosts{"A": Default(), "a": Default()}, `a: is the same as vhost "A"`)
	f(Vhosts{"a": aliases("x", "B"), "b": aliases("X", "c."), "C": Default()},
		`a.aliases[1]: "B" belongs to vhost "b" already`, `b.aliases[0]: "X" belongs to vhost "a" already`, `b.aliases[1]: "c." belongs to vhost "C" already`)
	f(Vhosts{"a": aliases("a", "x", "X")}) // says the same twice
	f(Vhosts{"a": aliases(DefaultName)}, `a.aliases[0]: `+DefaultName)
	f(Vhosts{"__defaultvhost__": Default()}, `__defaultvhost__: the default vhost is written `+DefaultName)
}

func TestTable(t *testing.T) {
	tb := table()
	if n := len(tb.All()); n != 3 {
		t.Errorf("%d vhosts", n)
	}
	for name, want := range map[string]string{"a": "a", "A": "a", "alias.EXAMPLE": "a", "b": "B", DefaultName: DefaultName, "__DEFAULTVHOST__": DefaultName} {
		if h, err := tb.Find(name); err != nil || h.Name != want {
			t.Errorf("Find(%q): %v, %v", name, h, err)
		}
	}
	if _, err := tb.Find(""); !errors.Is(err, ErrUnknown) {
		t.Error(err)
	}
	own := NewTable(Vhosts{DefaultName: {Play: PlayConfig{MaxPlayers: 7}, HLS: hls.DefaultConfig()}})
	if h, err := own.Find(DefaultName); err != nil || h.Config.Play.MaxPlayers != 7 || len(own.All()) != 1 {
		t.Errorf("the configured default vhost is not the one: %+v, %v", h, err)
	}
}
