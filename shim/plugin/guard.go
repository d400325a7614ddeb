package plugin

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/log"
	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coffer-project/coffer/shim/sandbox"
)

const (
	// idleLife is how long a shim without a running pod waits for its next request. It covers a containerd that
	// crashed between two calls and a pod that died and that nobody removes.
	idleLife = 10 * time.Minute
	// answerGrace lets the answer to the request that ends the shim leave the process: ttrpc has no hook for that, and
	// containerd takes a lost answer for a failure.
	answerGrace = 50 * time.Millisecond

	taskCreate = "/containerd.task.v3.Task/Create"
)

// guard bounds the life of a shim that nobody needs.
type guard struct {
	pod    *sandbox.Pod
	unlist func() error
	end    func()
	idle   time.Duration

	mu      sync.Mutex // guards idle and what follows
	timer   *time.Timer
	stopped bool
}

// newGuard makes the guard: unlist takes the shim's socket away, end ends the process.
func newGuard(pod *sandbox.Pod, unlist func() error, end func()) *guard {
	g := &guard{pod: pod, unlist: unlist, end: end, idle: idleLife}
	g.timer = time.AfterFunc(g.idle, g.expire)
	return g
}

// intercept is the server's only interceptor: no method can forget what it does.
func (g *guard) intercept(ctx context.Context, unmarshal ttrpc.Unmarshaler, info *ttrpc.UnaryServerInfo, method ttrpc.Method) (any, error) {
	g.touch()
	defer g.touch()
	response, err := method(ctx, unmarshal)
	if err != nil {
		log.G(ctx).WithError(err).WithField("method", info.FullMethod).Debug("request failed")
		return nil, answer(info.FullMethod, err)
	}
	return response, nil
}

// answer gives an error the form in which it leaves the shim: a class and one line. The errors that it wraps stay here, for
// containerd would print each of them again, below the line that has them all.
//
// containerd takes "not implemented" from Create for a shim of an older API, asks again by that, and shows only the
// answer to this second question: what the guest cannot do with an image or a container must come under another class
// to be heard.
func answer(method string, err error) error {
	s, _ := status.FromError(errgrpc.ToGRPC(err))
	code := s.Code()
	if method == taskCreate && code == codes.Unimplemented {
		code = codes.FailedPrecondition
	}
	return status.Error(code, strings.ReplaceAll(s.Message(), "\n", "; "))
}

func (g *guard) touch() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.stopped {
		g.timer.Reset(g.idle)
	}
}

// expire ends the shim unless its pod is alive.
func (g *guard) expire() {
	switch g.pod.State() {
	case sandbox.StateNew, sandbox.StateCreated, sandbox.StateStopped, sandbox.StateInvalid:
		log.L.WithField("sandbox", g.pod.ID()).WithField("state", g.pod.State().String()).
			Warn("nobody has asked for this pod for a long time, the shim ends")
		g.end()
	default:
		g.touch()
	}
}

// shutdown ends the shim a moment after the request under way was answered. The socket goes before the answer: after it
// containerd may start another shim of the same name.
func (g *guard) shutdown() {
	if err := g.unlist(); err != nil {
		log.L.WithError(err).Warn("socket is left behind")
	}
	time.AfterFunc(answerGrace, g.end)
}

func (g *guard) stop() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.stopped = true
	g.timer.Stop()
}
