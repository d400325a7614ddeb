package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"runtime/debug"
	"sync"
	"time"

	"github.com/containerd/log"

	"github.com/coffer-project/coffer/proto/kbs"
)

// expireEvery is how often ended sessions are removed from the store.
const expireEvery = time.Minute

// listenMetrics begins to listen for Prometheus where the configuration asks for it.
func (s *Server) listenMetrics(ctx context.Context) error {
	if s.config.Metrics.Listen == "" {
		return nil
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", s.config.Metrics.Listen)
	if err != nil {
		return fmt.Errorf("listen for metrics on %s: %w", s.config.Metrics.Listen, err)
	}
	s.closers = append(s.closers, func() error { return ignoreClosed(listener.Close()) })
	s.metricsListener = listener
	return nil
}

// background starts what runs beside the broker and returns what ends it.
func (s *Server) background(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var group sync.WaitGroup
	var server *http.Server
	if s.metricsListener != nil {
		mux := http.NewServeMux()
		mux.Handle("GET "+kbs.PathMetrics, s.metrics.Handler())
		mux.HandleFunc("GET "+kbs.PathHealth, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
		server = &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second, ErrorLog: quietLog(ctx)}
		group.Go(func() {
			if err := server.Serve(s.metricsListener); !errors.Is(err, http.ErrServerClosed) {
				log.G(ctx).WithError(err).Error("metrics are not served any more")
			}
		})
	}
	if s.sessions != nil {
		group.Go(func() { s.expire(ctx) })
	}
	return func() {
		cancel()
		if server != nil {
			_ = server.Close() // nothing is lost with a scrape
		}
		group.Wait()
	}
}

// expire removes ended sessions until ctx ends.
func (s *Server) expire(ctx context.Context) {
	ticker := time.NewTicker(expireEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			if err := s.sessions.Expire(ctx, now); err != nil && ctx.Err() == nil {
				log.G(ctx).WithError(err).Warn("ended sessions could not be removed, will try again")
			}
		}
	}
}

// version is that of this build.
func version() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		return info.Main.Version
	}
	return ""
}
