package sandbox

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	cofferevent "github.com/coffer-project/coffer/shim/event"
	"github.com/coffer-project/coffer/shim/status"
)

// source is the pod as its status socket shows it.
type source struct{ pod *Pod }

// Status implements status.Source.
func (s source) Status() any { return s.pod.Report() }

// ConsoleFrom implements status.Source.
func (s source) ConsoleFrom(ctx context.Context, from uint64) ([]string, uint64, error) {
	s.pod.mu.Lock()
	config, instance := s.pod.config, s.pod.instance
	s.pod.mu.Unlock()
	if config == nil || !config.Guest.ShowConsole {
		return nil, 0, fmt.Errorf("the guest's console is not shown: it may hold what the workload prints; "+
			"to show it set guest.show_console = true in the shim's configuration and start the pod again: %w", errdefs.ErrPermissionDenied)
	}
	if instance == nil {
		return nil, 0, fmt.Errorf("the pod has no vm yet: %w", errdefs.ErrFailedPrecondition)
	}
	return instance.ConsoleFrom(ctx, from)
}

// serveStatus opens the pod's status socket. A pod that nobody can look into is better than none, so a failure is only
// logged. The pod's lock is held.
func (p *Pod) serveStatus(dir string) {
	server, err := status.Serve(p.life, dir, source{p})
	if err != nil {
		log.G(p.life).WithError(err).WithField("sandbox", p.request.ID).Warn("cofferctl ps will not see this pod's details")
		return
	}
	p.undo.push("close status socket", func(context.Context) error { return server.Close() })
}

// publishStart tells containerd's subscribers that the pod runs.
func (p *Pod) publishStart(took time.Duration) {
	e := p.event(cofferevent.PodStarted, "started")
	e.Took, e.Steps = took, map[string]time.Duration{}
	p.mu.Lock()
	for _, phase := range p.report.boot {
		e.Steps[phase.Name] = time.Duration(phase.Micros) * time.Microsecond
	}
	p.mu.Unlock()
	p.publish(e)
}

// publishEnd tells them that the pod failed to start, or has stopped; cause is nil for a stop that was asked for.
func (p *Pod) publishEnd(topic string, cause error) {
	e := p.event(topic, "stopped")
	if topic == cofferevent.PodFailed {
		e.Phase = "failed"
	}
	if cause != nil {
		e.Error = cause.Error()
	}
	p.publish(e)
}

func (p *Pod) event(topic, phase string) cofferevent.Event {
	p.mu.Lock()
	defer p.mu.Unlock()
	namespace, name := podName(p.request.Config)
	if namespace != "" {
		name = namespace + "/" + name
	}
	return cofferevent.Event{Topic: topic, Phase: phase, Sandbox: p.request.ID, Name: name}
}

func (p *Pod) publish(e cofferevent.Event) {
	if p.members != nil {
		p.members.Publish(e)
	}
}
