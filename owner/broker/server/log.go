package server

import (
	"context"
	stdlog "log"
	"strings"

	"github.com/containerd/log"
)

// quietLog sends net/http's own messages (failed TLS handshakes and the like, which anybody can cause) to debug level.
func quietLog(ctx context.Context) *stdlog.Logger {
	return stdlog.New(debugWriter{ctx}, "", 0)
}

// debugWriter keeps the server's life context because log.Logger has no place for one.
type debugWriter struct{ ctx context.Context }

// Write implements io.Writer.
func (w debugWriter) Write(line []byte) (int, error) {
	log.G(w.ctx).WithField("detail", strings.TrimSpace(string(line))).Debug("http server message")
	return len(line), nil
}
