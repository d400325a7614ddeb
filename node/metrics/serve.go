package metrics

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/coffer-project/coffer/snapshotter/server"
)

const (
	headerLimit = 5 * time.Second
	stopLimit   = 5 * time.Second
)

// Listen opens the address that metrics are served on: host:port, or unix:/path, for root, for a scraper that can do that.
func Listen(ctx context.Context, address string) (net.Listener, error) {
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		return server.Listen(ctx, path)
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen for scrapes: %w", err)
	}
	return listener, nil
}

// Serve answers GET /metrics until ctx ends.
func Serve(ctx context.Context, listener net.Listener, gatherer prometheus.Gatherer) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(gatherer, promhttp.HandlerOpts{
		MaxRequestsInFlight: 4, Timeout: 2 * scrapeLimit, ErrorHandling: promhttp.ContinueOnError,
	}))
	scraped := &http.Server{Handler: mux, ReadHeaderTimeout: headerLimit}
	served := make(chan error, 1)
	go func() { served <- scraped.Serve(listener) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve metrics: %w", err)
	case <-ctx.Done():
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopLimit)
	defer cancel()
	err := scraped.Shutdown(ctx)
	if <-served; err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("serve metrics: %w", err)
	}
	return nil
}
