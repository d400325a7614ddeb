package harness

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// AdminTool is the host's half of cofferctl, which Admin and StartMetrics need.
func (n *Node) AdminTool() string { return filepath.Join(n.Tools.BuildBin, "coffer-node") }

// ConfigPath is the configuration file of a part of the node: shim, snapshotter or containerd.
func (n *Node) ConfigPath(part string) string { return n.path(part + ".toml") }

// Admin runs one of cofferctl's commands for a node's admin and returns what it wrote. Its error quotes what it
// complained about.
func (n *Node) Admin(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, n.Tools.Ctl, args...)
	cmd.Env = append(os.Environ(), "PATH="+n.searchPath())
	var out, words bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &words
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("cofferctl %s: %w: %s", strings.Join(args, " "), err, words.String())
	}
	return out.String(), nil
}

// StartMetrics starts the exporter of the node's figures. The caller stops it.
func (n *Node) StartMetrics(ctx context.Context) (*Process, error) {
	return startProcess(ctx, n.Dir, "metrics", exec.Command(n.AdminTool(), "metrics", "--config", n.ConfigPath("shim"),
		"--snapshotter-config", n.ConfigPath("snapshotter"), "--listen", "unix:"+n.path("metrics.sock")))
}

// Metrics scrapes the exporter that StartMetrics started.
func (n *Node) Metrics(ctx context.Context) (string, error) {
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", n.path("metrics.sock"))
		},
	}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://node/metrics", nil)
	if err != nil {
		return "", err
	}
	response, err := client.Do(request)
	if err != nil {
		return "", fmt.Errorf("scrape metrics: %w", err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		return "", fmt.Errorf("scrape metrics: status %d, %w", response.StatusCode, err)
	}
	return string(text), nil
}

// WatchEvents runs `ctr events` with its output going to the returned file. The caller stops it.
func (n *Node) WatchEvents(ctx context.Context) (*Process, error) {
	cmd := exec.Command(n.Tools.CtrTool, "--address", n.path("containerd.sock"), "events")
	// It does not say when it listens, so a namespace is made until its event arrives.
	mark := 0
	p, err := launch(n.Dir, "events", cmd)
	if err != nil {
		return nil, err
	}
	err = Eventually(ctx, func(ctx context.Context) error {
		mark++
		name := fmt.Sprintf("watch-%d", mark)
		for _, args := range [][]string{{"namespaces", "create", name}, {"namespaces", "remove", name}} {
			if _, err := n.Ctr(ctx, args...); err != nil {
				return err
			}
		}
		if !strings.Contains(p.Tail(20), "watch-") {
			return fmt.Errorf("ctr events shows nothing yet: %s", p.Tail(20))
		}
		return nil
	})
	if err != nil {
		_ = p.Kill()
		return nil, err
	}
	return p, nil
}
