package autoscale

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// newDriver returns the driver of cfg, with the nodes' admin interfaces in front of it
// if they are configured.
func newDriver(cfg Config) Driver {
	var d Driver
	client := &http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	switch cfg.Driver {
	case Exec:
		d = execDriver{cfg}
	case Webhook:
		d = webhookDriver{cfg, client}
	default:
		return logDriver{}
	}
	if cfg.AdminPort > 0 {
		d = adminDriver{d, cfg, client}
	}
	return d
}

// logDriver does nothing: the scaler writes each action into the log.
type logDriver struct{}

// Do implements Driver.
func (logDriver) Do(context.Context, Action, string) error { return nil }

// adminDriver drains nodes over their admin interface and leaves machines to another.
type adminDriver struct {
	machines Driver
	cfg      Config
	client   *http.Client
}

func (d adminDriver) Do(ctx context.Context, a Action, host string) error {
	method, query := http.MethodPost, ""
	switch a.Kind {
	case Drain:
		query = "?deadline=" + url.QueryEscape(a.Deadline.String())
	case Undrain:
		method = http.MethodDelete
	default:
		return d.machines.Do(ctx, a, host)
	}
	if host == "" {
		return fmt.Errorf("%s node %s: its address is not known", a.Kind, a.Node)
	}
	target := "http://" + net.JoinHostPort(host, strconv.Itoa(d.cfg.AdminPort)) + "/api/v1/drain" + query
	return call(ctx, d.client, method, target, string(d.cfg.AdminToken), nil)
}

// execDriver runs a program.
type execDriver struct{ cfg Config }

func (d execDriver) Do(ctx context.Context, a Action, _ string) error {
	args := append(append([]string{}, d.cfg.Command[1:]...), string(a.Kind), a.Node)
	cmd := exec.CommandContext(ctx, d.cfg.Command[0], args...)
	cmd.Env = append(os.Environ(),
		"WEIR_ACTION="+string(a.Kind), "WEIR_NODE="+a.Node, "WEIR_GROUP="+d.cfg.Group,
		"WEIR_DEADLINE="+strconv.Itoa(int(a.Deadline.Seconds())), "WEIR_REASON="+a.Reason)
	// A program whose children keep its output open has ended all the same.
	cmd.WaitDelay = time.Second
	var out tail
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
		return fmt.Errorf("run %s: %w: %s", d.cfg.Command[0], err, strings.TrimSpace(string(out.bytes)))
	}
	return nil
}

// tail keeps the last bytes of a program's output.
type tail struct{ bytes []byte }

const tailSize = 512

func (t *tail) Write(p []byte) (int, error) {
	t.bytes = append(t.bytes, p...)
	if over := len(t.bytes) - tailSize; over > 0 {
		t.bytes = append(t.bytes[:0], t.bytes[over:]...)
	}
	return len(p), nil
}

// webhookDriver tells somebody else.
type webhookDriver struct {
	cfg    Config
	client *http.Client
}

type webhookBody struct {
	Action
	Group           string  `json:"group"`
	DeadlineSeconds float64 `json:"deadline_seconds,omitempty"` // of a drain
}

func (d webhookDriver) Do(ctx context.Context, a Action, _ string) error {
	body, err := json.Marshal(webhookBody{a, d.cfg.Group, a.Deadline.Seconds()})
	if err != nil {
		return fmt.Errorf("encode action: %w", err)
	}
	return call(ctx, d.client, http.MethodPost, d.cfg.URL, string(d.cfg.Token), body)
}

// call makes a call that must be answered with 2xx.
func call(ctx context.Context, c *http.Client, method, target, token string, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, method, target, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("make request: %w", err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := c.Do(req)
	if err != nil {
		var u *url.Error // it repeats the URL, which may hold a key
		if errors.As(err, &u) {
			err = u.Err
		}
		return fmt.Errorf("call: %w", err)
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, tailSize))
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("answered with status %d: %s", resp.StatusCode, bytes.TrimSpace(text))
	}
	return nil
}
