package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// registry is a registry process on loopback.
type registry struct {
	host string
	cmd  *exec.Cmd
}

// startRegistry serves the layouts under dir, each as the repository of its folder's name. It is a process of its own
// that hands files to sockets in the kernel, so that it takes as little as possible from what is measured.
func startRegistry(ctx context.Context, dir string) (*registry, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("start registry: %w", err)
	}
	cmd := exec.CommandContext(ctx, self, "serve", dir)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start registry: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start registry: %w", err)
	}
	host, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return nil, fmt.Errorf("start registry: it said no address: %w", err)
	}
	return &registry{host: strings.TrimSpace(host), cmd: cmd}, nil
}

func (r *registry) ref(img *image) string { return r.host + "/" + img.Name + ":" + tag }

func (r *registry) close() error {
	if err := r.cmd.Process.Kill(); err != nil {
		return fmt.Errorf("stop registry: %w", err)
	}
	_ = r.cmd.Wait() // it was killed
	return nil
}

// serveLayouts prints its address and serves until it is killed.
func serveLayouts(ctx context.Context, dir string, out io.Writer) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Fprintln(out, l.Addr())
	server := &http.Server{Handler: layouts(dir), ReadHeaderTimeout: 10 * time.Second, BaseContext: func(net.Listener) context.Context { return ctx }}
	return server.Serve(l)
}

var objectPath = regexp.MustCompile(`^/v2/([a-z0-9-]+)/(manifests|blobs)/(?:(` + tag + `)|sha256:([0-9a-f]{64}))$`)

// layouts is the part of the distribution protocol that a pull needs.
type layouts string

func (dir layouts) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if req.URL.Path == "/v2/" {
		return
	}
	part := objectPath.FindStringSubmatch(req.URL.Path)
	if part == nil {
		http.NotFound(w, req)
		return
	}
	layout, sum := filepath.Join(string(dir), part[1]), part[4]
	mediaType := "application/octet-stream"
	if part[2] == "manifests" {
		mediaType = ocispec.MediaTypeImageManifest
	}
	if part[3] != "" {
		raw, err := os.ReadFile(filepath.Join(layout, ocispec.ImageIndexFile))
		var index ocispec.Index
		if err != nil || json.Unmarshal(raw, &index) != nil || len(index.Manifests) != 1 {
			http.NotFound(w, req)
			return
		}
		sum = index.Manifests[0].Digest.Encoded()
	}
	f, err := os.Open(filepath.Join(layout, ocispec.ImageBlobsDir, "sha256", sum))
	if err != nil {
		http.NotFound(w, req)
		return
	}
	defer f.Close()
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Docker-Content-Digest", "sha256:"+sum)
	http.ServeContent(w, req, "", time.Time{}, f)
}
