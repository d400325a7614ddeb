package registry

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/integration/registrytest"
)

// drip is a registry, and the body of its answers: a byte every now and then, without end.
type drip struct {
	ctx   context.Context // of the request
	pause time.Duration
}

func (d drip) RoundTrip(r *http.Request) (*http.Response, error) {
	d.ctx = r.Context()
	return &http.Response{StatusCode: http.StatusOK, ContentLength: 2e6, Body: d, Request: r}, nil
}

func (d drip) Read(p []byte) (int, error) {
	select {
	case <-time.After(d.pause):
		p[0] = 'x'
		return 1, nil
	case <-d.ctx.Done():
		return 0, d.ctx.Err()
	}
}

func (drip) Close() error { return nil }

// TestDrips: a registry that never falls silent and sends next to nothing is given up, by the limits that hold where nobody
// sets any. The clock is not the machine's, on which the registry itself may be late.
func TestDrips(t *testing.T) {
	for name, tc := range map[string]struct {
		pause time.Duration
		after time.Duration // two attempts, beside the pause between them
		want  string
	}{
		"drips":  {20 * time.Millisecond, 2 * 2 * defaultIdleTimeout, "less than 4096 in a second"},
		"silent": {defaultIdleTimeout + 1, 2 * defaultIdleTimeout, "sent nothing for 30s"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, img := put(registrytest.New(), 1<<20)
				c, err := New(Config{})
				if err != nil {
					t.Fatal(err)
				}
				c.whole.sites[nil].http.Transport.(*transport).base = drip{pause: tc.pause}
				begin := time.Now()
				_, err = readBlob(t.Context(), c, "registry.example/app:1", img)
				if !errors.Is(err, errdefs.ErrUnavailable) || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("got %v; want %q", err, tc.want)
				}
				if took := time.Since(begin); took < tc.after || took > tc.after+time.Second {
					t.Errorf("given up after %s, want %s and a pause", took, tc.after)
				}
			})
		})
	}
}
