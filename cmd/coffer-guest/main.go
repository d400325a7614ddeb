// Command coffer-guest is the guest's first process and its agent: it boots the utility VM, reads the measured document, and serves
// the host's requests on the control channel. Its own program also holds the pod's pid namespace, see package holder.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/coffer-project/coffer/guestpull/boot"
	"github.com/coffer-project/coffer/guestpull/container/cgroup"
	"github.com/coffer-project/coffer/guestpull/gpu"
	"github.com/coffer-project/coffer/guestpull/image"
	"github.com/coffer-project/coffer/guestpull/policy"
	"github.com/coffer-project/coffer/guestpull/sandbox/holder"
	"github.com/coffer-project/coffer/guestpull/scratch"
	"github.com/coffer-project/coffer/guestpull/server"
	"github.com/coffer-project/coffer/guestpull/transport"
	"github.com/coffer-project/coffer/proto/mux"
)

func main() {
	switch {
	case filepath.Base(os.Args[0]) == boot.ModprobeName:
		os.Exit(boot.ModprobeMain(context.Background(), os.Args[1:]))
	case len(os.Args) == 2 && os.Args[1] == holder.Arg:
		os.Exit(holder.Main())
	case os.Getpid() == 1:
		boot.Run(context.Background(), serveMachine)
	default:
		if err := serveHost(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, "coffer-guest:", err)
			os.Exit(1)
		}
	}
}

// serveMachine is the life of the guest after its boot.
func serveMachine(ctx context.Context, m *boot.Machine) error {
	s := settings{
		base:       "/run/kata-containers",
		state:      "/run/coffer",
		runc:       "/usr/bin/runc",
		resolvConf: "/etc/resolv.conf",
		init:       true,
		proxy:      m.Params.HTTPSProxy,
		noProxy:    m.Params.NoProxy,
		pipeSize:   m.Params.PipeSize,
		hotplug:    m.Params.HotplugTimeout,
		cgroups:    cgroup.Default,
		place:      scratch.NewPlace(),
		secrets:    newLateSecrets(),
		gpus:       gpu.New(m.Params.CDITimeout),
		complete:   m.WaitComplete,
		pulls:      image.NewTracker(),
		pullLimit:  m.Params.ImagePullTimeout,
		phases: func() []server.Phase {
			var out []server.Phase
			for _, p := range m.Phases() {
				out = append(out, server.Phase(p))
			}
			return out
		},
	}
	images, engine := newLateImages(m.Params.ImagePullTimeout), policy.NewLate()
	s.policy = engine
	go configure(ctx, m, s, images, engine)
	begin := time.Now()
	srv, err := assemble(s, images)
	if err != nil {
		return err
	}
	m.AddPhase("assemble", time.Since(begin))
	begin = time.Now()
	channel, err := transport.Find(ctx)
	if err != nil {
		return err
	}
	l, err := channel.Listen(ctx, mux.AgentPort)
	if err != nil {
		return err
	}
	forwards, err := channel.Listen(ctx, mux.ForwardPort)
	if err != nil {
		return err
	}
	m.AddPhase("listen", time.Since(begin))
	go srv.ServeForwards(ctx, forwards)
	m.Ready()
	return srv.Serve(ctx, l)
}
