package status

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errhttp"
	"github.com/containerd/log"
)

const (
	// headerLimit bounds what a client that says nothing costs.
	headerLimit = 5 * time.Second
	// maxHeader bounds a request, in bytes.
	maxHeader = 8 << 10
)

// Source is what a server tells about.
type Source interface {
	// Status returns the pod's report, which becomes JSON.
	Status() any
	// ConsoleFrom returns the console's lines from number from on, or from the oldest kept one if that is later, and the
	// number after the last. It waits for a line when there is none yet. It fails with io.EOF when no line can come any
	// more, with errdefs.ErrPermissionDenied when nobody may see the console, with errdefs.ErrFailedPrecondition before
	// there is one, and with ctx's error.
	ConsoleFrom(ctx context.Context, from uint64) (lines []string, next uint64, err error)
}

// Server answers on one pod's socket.
type Server struct {
	http *http.Server
	path string
}

// Serve listens in the state directory and answers until Close. life ends with the pod.
func Serve(life context.Context, stateDir string, source Source) (*Server, error) {
	path := Socket(stateDir)
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("status socket %s: its path is longer than %d bytes, choose a shorter state_dir: %w",
			path, maxSocketPath, errdefs.ErrInvalidArgument)
	}
	listener, err := (&net.ListenConfig{}).Listen(life, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on status socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("protect status socket: %w", err), listener.Close())
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /report", func(w http.ResponseWriter, _ *http.Request) { report(life, w, source) })
	mux.HandleFunc("GET /console", func(w http.ResponseWriter, r *http.Request) { console(w, r, source) })
	s := &Server{path: path, http: &http.Server{
		Handler: mux, ReadHeaderTimeout: headerLimit, MaxHeaderBytes: maxHeader, IdleTimeout: headerLimit,
		BaseContext: func(net.Listener) context.Context { return life },
	}}
	go func() {
		if err := s.http.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			log.G(life).WithError(err).Warn("the pod's status socket is closed")
		}
	}()
	return s, nil
}

// Close ends the server and all answers under way. It is idempotent.
func (s *Server) Close() error { return s.http.Close() }

func report(ctx context.Context, w http.ResponseWriter, source Source) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(source.Status()); err != nil {
		log.G(ctx).WithError(err).Debug("status not answered")
	}
}

// console writes the last lines, and with follow all that come until the VM or the client ends.
func console(w http.ResponseWriter, r *http.Request, source Source) {
	query := r.URL.Query()
	count := 0
	if text := query.Get("lines"); text != "" {
		n, err := strconv.ParseUint(text, 10, 16)
		if err != nil {
			http.Error(w, "lines is no number below 65536", http.StatusBadRequest)
			return
		}
		count = int(n)
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	if !query.Has("follow") {
		cancel() // what is there is answered all the same
	}
	var next uint64
	for first := true; ; first = false {
		lines, after, err := source.ConsoleFrom(ctx, next)
		if err != nil && first && !errors.Is(err, context.Canceled) && !isEnd(err) {
			http.Error(w, err.Error(), errhttp.ToHTTP(err))
			return
		}
		if first {
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			w.Header().Set("X-Content-Type-Options", "nosniff")
			if count > 0 {
				lines = lines[max(0, len(lines)-count):]
			}
		}
		for _, line := range lines {
			if _, err := fmt.Fprintln(w, line); err != nil {
				return
			}
		}
		if err != nil || ctx.Err() != nil {
			return
		}
		if err := http.NewResponseController(w).Flush(); err != nil {
			return
		}
		next = after
	}
}
