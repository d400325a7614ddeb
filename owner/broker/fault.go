package broker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/coffer-project/coffer/proto/kbs"
)

// fault is a refusal or failure with what the peer may know of it. The protocol wants 401 for nearly every refusal.
type fault struct {
	status int
	kind   string
	detail string
	cause  error // for our own log only
}

func (f *fault) Error() string {
	if f.cause != nil {
		return fmt.Sprintf("%s: %v", f.detail, f.cause)
	}
	return f.detail
}

func (f *fault) Unwrap() error { return f.cause }

func refuse(kind, format string, args ...any) *fault {
	return &fault{status: http.StatusUnauthorized, kind: kind, detail: fmt.Sprintf(format, args...)}
}

func missing(kind, format string, args ...any) *fault {
	return &fault{status: http.StatusNotFound, kind: kind, detail: fmt.Sprintf(format, args...)}
}

// broken hides the cause from the peer: it may name files.
func broken(what string, cause error) *fault {
	return &fault{status: http.StatusInternalServerError, kind: kbs.KindPluginInternal, detail: what + "; see the broker's log", cause: cause}
}

func busy(status int, detail string) *fault {
	return &fault{status: status, kind: kbs.KindTooManyRequests, detail: detail}
}

// reply turns what an endpoint returns into the answer.
func reply(ctx context.Context, w http.ResponseWriter, err error) {
	if err == nil {
		return
	}
	f, ok := errors.AsType[*fault](err)
	if !ok {
		f = broken("internal error", err)
	}
	if f.status >= http.StatusInternalServerError {
		log.G(ctx).WithError(err).Error("request failed")
	}
	if f.status == http.StatusTooManyRequests || f.status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "1")
	}
	w.Header().Set("Content-Type", kbs.ProblemType)
	w.WriteHeader(f.status)
	w.Write(kbs.NewProblem(f.kind, f.detail).Encode())
}

// readBody reads a request's body of at most limit bytes.
func readBody(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	if err == nil {
		return body, nil
	}
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, &fault{status: http.StatusRequestEntityTooLarge, kind: kbs.KindPluginInternal, detail: fmt.Sprintf("request is larger than %d bytes", limit)}
	}
	return nil, &fault{status: http.StatusBadRequest, kind: kbs.KindPluginInternal, detail: "request ended early", cause: err}
}

// peerText is the part of an error of ours that a guest may see: only classes whose texts are written for it.
func peerText(err error) string {
	if errdefs.IsInvalidArgument(err) || errdefs.IsPermissionDenied(err) || errdefs.IsNotImplemented(err) {
		return err.Error()
	}
	return "internal error"
}
