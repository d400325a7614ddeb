// Command coffer-guest is the guest's first process and its agent: it boots the utility VM, reads the measured document, and serves
// the host's requests on the control channel. Its own program also holds the pod's pid namespace, see package holder.
package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"

	"github.com/coffer-project/coffer/guestpull/boot"
	"github.com/coffer-project/coffer/guestpull/container/cgroup"
	"github.com/coffer-project/coffer/guestpull/container/reap"
	"github.com/coffer-project/coffer/guestpull/sandbox/holder"
	"github.com/coffer-project/coffer/guestpull/server"
	"github.com/coffer-project/coffer/guestpull/transport"
	"github.com/coffer-project/coffer/proto/mux"
)

func main() {
	switch {
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
	document, err := m.InitData(ctx)
	if err != nil {
		return err
	}
	s := settings{
		base:       "/run/kata-containers",
		state:      "/run/coffer",
		runc:       "/usr/bin/runc",
		resolvConf: "/etc/resolv.conf",
		init:       true,
		proxy:      m.Params.HTTPSProxy,
		noProxy:    m.Params.NoProxy,
		cgroups:    cgroup.Default,
		phases: func() []server.Phase {
			var out []server.Phase
			for _, p := range m.Phases() {
				out = append(out, server.Phase(p))
			}
			return out
		},
	}
	if document != nil {
		s.initdata = document.Raw
	}
	srv, err := assemble(ctx, s)
	if err != nil {
		return err
	}
	channel, err := transport.Find(ctx)
	if err != nil {
		return err
	}
	l, err := channel.Listen(ctx, mux.AgentPort)
	if err != nil {
		return err
	}
	m.Ready()
	return srv.Serve(ctx, l)
}

// serveHost serves the agent protocol on a socket of an ordinary machine, as root: for development and tests.
func serveHost(args []string) error {
	flags := flag.NewFlagSet("coffer-guest", flag.ContinueOnError)
	listen := flags.String("listen", "", "unix `socket` to serve on")
	base := flags.String("base", "", "`folder` for containers, in place of /run/kata-containers")
	runc := flags.String("runc", "/usr/bin/runc", "the runc `program`")
	measured := flags.String("initdata", "", "measured document, a toml `file`")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *listen == "" || *base == "" || flags.NArg() > 0 {
		return fmt.Errorf("not the first process of a machine; for development give --listen SOCKET and --base FOLDER")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := reap.Serve(ctx); err != nil {
		return err
	}
	s, err := hostSettings(*base, *runc, *measured)
	if err != nil {
		return err
	}
	srv, err := assemble(ctx, s)
	if err != nil {
		return err
	}
	l, err := net.Listen("unix", *listen)
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { _ = srv.Close() })
	return srv.Serve(ctx, l)
}
