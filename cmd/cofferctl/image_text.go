package main

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	"golang.org/x/term"

	"github.com/coffer-project/coffer/owner/seal"
)

// parseLayout splits oci:FOLDER[:TAG].
func parseLayout(name string) (dir, tag string, ok bool) {
	rest, ok := strings.CutPrefix(name, "oci:")
	if !ok {
		return "", "", false
	}
	// A tag has no slash, so a colon before the last slash belongs to the folder.
	if i := strings.LastIndexByte(rest, ':'); i > strings.LastIndexByte(rest, '/') {
		return rest[:i], rest[i+1:], true
	}
	return rest, "", true
}

// readCredentials reads user names and passwords as docker login and podman login leave them. Without a name the usual
// file is used where it exists.
func readCredentials(file string) (func(host string) (string, string, error), error) {
	explicit := file != ""
	if !explicit {
		home, err := os.UserHomeDir()
		if err != nil {
			return nil, nil //nolint:nilerr // no home, no file
		}
		file = filepath.Join(home, ".docker", "config.json")
	}
	raw, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) && !explicit {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read registry credentials: %w", err)
	}
	var config struct {
		Auths map[string]struct {
			Auth string `json:"auth"`
		} `json:"auths"`
	}
	if err := json.Unmarshal(raw, &config); err != nil {
		return nil, fmt.Errorf("read registry credentials from %s: %w", file, err)
	}
	return func(host string) (string, string, error) {
		if host == "registry-1.docker.io" {
			host = "https://index.docker.io/v1/"
		}
		entry, ok := config.Auths[host]
		if !ok || entry.Auth == "" {
			return "", "", nil
		}
		plain, err := base64.StdEncoding.DecodeString(entry.Auth)
		user, password, found := strings.Cut(string(plain), ":")
		if err != nil || !found {
			return "", "", fmt.Errorf("credentials for %s in %s are not base64 of user:password", host, file)
		}
		return user, password, nil
	}, nil
}

// progress shows how far layers are: a line that is redrawn on a terminal, one line per finished layer elsewhere.
type progress struct {
	out      io.Writer
	terminal bool

	mu     sync.Mutex
	layers map[string]seal.Event
	drawn  bool
}

func newProgress(f *os.File) *progress {
	return &progress{out: f, terminal: term.IsTerminal(int(f.Fd())), layers: map[string]seal.Event{}}
}

func (p *progress) update(e seal.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	key := e.Platform + " " + e.Layer.String()
	if old := p.layers[key]; old.Done == old.Total && old.Total > 0 {
		return
	}
	p.layers[key] = e
	if p.terminal {
		p.draw()
		return
	}
	if e.Done == e.Total {
		fmt.Fprintf(p.out, "layer %s %s done (%s)\n", short(e.Layer), e.Platform, size(e.Total))
	}
}

func (p *progress) draw() {
	const width = 30
	var done, total int64
	finished := 0
	for _, e := range p.layers {
		done, total = done+e.Done, total+e.Total
		if e.Done == e.Total {
			finished++
		}
	}
	filled := 0
	if total > 0 {
		filled = int(width * done / total)
	}
	p.drawn = true
	fmt.Fprintf(p.out, "\r\x1b[K[%s%s] %s / %s, %d of %d layers",
		strings.Repeat("#", filled), strings.Repeat(".", width-filled), size(done), size(total), finished, len(p.layers))
}

// finish leaves the line of the bar, so that what follows has its own.
func (p *progress) finish() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.drawn {
		fmt.Fprintln(p.out)
	}
}

func short(d digest.Digest) string {
	const digits = 12
	if d.Validate() != nil {
		return fmt.Sprintf("%.16q", d.String())
	}
	if hex := d.Encoded(); len(hex) > digits {
		return hex[:digits]
	}
	return d.String()
}

func size(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%d B", n)
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func keyColumn(l seal.LayerDescription) string {
	if l.Fault != "" {
		return "? " + l.Fault
	}
	return strings.Join(l.KeyIDs, " ")
}
