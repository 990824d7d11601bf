package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"
)

// NodePIDs asks a node of weir, at its admin address, for its processes: the
// supervisor's and those of its workers. The node must be on this machine, as
// its processes are no others'.
func NodePIDs(ctx context.Context, admin, token string) ([]int, error) {
	pids, err := nodePIDs(ctx, admin, token)
	if err != nil {
		return nil, fmt.Errorf("ask node %s for its processes: %w", admin, err)
	}
	return pids, nil
}

func nodePIDs(ctx context.Context, admin, token string) ([]int, error) {
	u, err := url.Parse(admin)
	if err != nil || u.Scheme != "http" || u.Host == "" {
		return nil, fmt.Errorf("%w: want http://HOST:PORT", ErrUsage)
	}
	port := u.Port()
	if port == "" {
		port = "80"
	}
	addr, err := new(Config).resolve(u.Hostname() + ":" + port)
	if err != nil {
		return nil, err
	}
	u.Host = addr.String()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.JoinPath("/api/v1/node").String(), nil)
	if err != nil {
		return nil, err
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("HTTP %s", resp.Status)
	}
	var node struct {
		PID     int `json:"pid"`
		Workers []struct {
			PID int `json:"pid"`
		} `json:"workers"`
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&node); err != nil {
		return nil, fmt.Errorf("read answer: %w", err)
	}
	if node.PID == 0 {
		return nil, fmt.Errorf("the answer names no process")
	}
	pids := []int{node.PID}
	for _, w := range node.Workers {
		if w.PID != 0 {
			pids = append(pids, w.PID)
		}
	}
	return pids, nil
}
