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
	"github.com/coffer-project/coffer/guestpull/image"
	"github.com/coffer-project/coffer/guestpull/sandbox/holder"
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
		cgroups:    cgroup.Default,
		complete:   m.WaitComplete,
		pulls:      image.NewTracker(),
		phases: func() []server.Phase {
			var out []server.Phase
			for _, p := range m.Phases() {
				out = append(out, server.Phase(p))
			}
			return out
		},
	}
	images := newLateImages(m.Params.ImagePullTimeout)
	go configure(ctx, m, s, images)
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
	m.AddPhase("listen", time.Since(begin))
	m.Ready()
	return srv.Serve(ctx, l)
}

// configure reads the measured document while the host is already served: its disk may appear late, and only containers need it. A
// guest whose document or whose machine is bad must not go on with half of it.
func configure(ctx context.Context, m *boot.Machine, s settings, images *lateImages) {
	begin := time.Now()
	document, err := m.InitData(ctx)
	if err != nil {
		m.PowerOff(err)
	}
	if err := m.WaitComplete(ctx); err != nil {
		m.PowerOff(err)
	}
	if document != nil {
		s.initdata = document.Raw
	}
	puller, err := newImages(ctx, s)
	if err != nil {
		m.PowerOff(err)
	}
	m.AddPhase("initdata", time.Since(begin))
	images.set(puller)
}
