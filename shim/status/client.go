package status

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errhttp"
)

const (
	// maxReport bounds a report in bytes: a guest has its share in it.
	maxReport = 16 << 20
	// maxReason bounds an error in bytes.
	maxReason = 4 << 10
)

func isEnd(err error) bool { return errors.Is(err, io.EOF) }

// Report asks the shim of a state directory for its pod's report. It fails with errdefs.ErrUnavailable when no shim
// answers there.
func Report(ctx context.Context, stateDir string, into any) error {
	body, err := get(ctx, stateDir, "/report")
	if err != nil {
		return err
	}
	defer body.Close()
	if err := json.NewDecoder(io.LimitReader(body, maxReport)).Decode(into); err != nil {
		return fmt.Errorf("decode report of the pod in %s: %w", stateDir, err)
	}
	return nil
}

// Console returns the last lines of a guest's console (0: all that are kept), and with follow what comes until ctx or the
// VM ends. It fails with errdefs.ErrPermissionDenied when the configuration does not allow it, and with
// errdefs.ErrUnavailable when no shim answers. The caller closes the text.
func Console(ctx context.Context, stateDir string, lines uint16, follow bool) (io.ReadCloser, error) {
	query := url.Values{}
	if lines > 0 {
		query.Set("lines", strconv.Itoa(int(lines)))
	}
	if follow {
		query.Set("follow", "true")
	}
	return get(ctx, stateDir, "/console?"+query.Encode())
}

func get(ctx context.Context, stateDir, path string) (io.ReadCloser, error) {
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", Socket(stateDir))
		},
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://pod"+path, nil)
	if err != nil {
		return nil, err
	}
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		if gone(err) {
			return nil, fmt.Errorf("no shim answers in %s: %w: %w", stateDir, err, errdefs.ErrUnavailable)
		}
		return nil, fmt.Errorf("ask the shim in %s: %w", stateDir, err)
	}
	if response.StatusCode == http.StatusOK {
		return response.Body, nil
	}
	defer response.Body.Close()
	reason, _ := io.ReadAll(io.LimitReader(response.Body, maxReason)) // the status says enough without it
	class := errhttp.ToNative(response.StatusCode)
	// The reason names its class, as all errors do.
	return nil, fmt.Errorf("%s: %w", strings.TrimSuffix(strings.TrimSpace(string(reason)), ": "+class.Error()), class)
}

// gone tells a shim that has ended from one that does not answer.
func gone(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOENT)
}
