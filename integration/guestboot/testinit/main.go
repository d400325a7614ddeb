// Command testinit is a PID 1 for the boot tests: it boots with the real code, answers on the control channel, and does
// nothing else. Port 1 echoes; a line written to port 2 is a command, see run.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/pkg/sys/reaper"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/guestpull/boot"
	"github.com/coffer-project/coffer/guestpull/transport"
)

func main() {
	if filepath.Base(os.Args[0]) == boot.ModprobeName { // the kernel asks for a module
		os.Exit(boot.ModprobeMain(context.Background(), os.Args[1:]))
	}
	if len(os.Args) > 1 && os.Args[1] == "pivot" {
		if err := pivot(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("pivoted")
		return
	}
	boot.Run(context.Background(), serve)
}

func serve(ctx context.Context, m *boot.Machine) error {
	begin := time.Now()
	t, err := transport.Find(ctx)
	if err != nil {
		return err
	}
	m.AddPhase("find_channel", time.Since(begin))
	echo, err := t.Listen(ctx, 1)
	if err != nil {
		return err
	}
	commands, err := t.Listen(ctx, 2)
	if err != nil {
		return err
	}
	m.Ready()
	go serveEach(echo, func(c net.Conn) error { _, err := io.Copy(c, c); return err })
	go serveEach(commands, func(c net.Conn) error { return answer(ctx, m, c) })
	<-mainPanics
	panic("asked to panic")
}

// mainPanics is closed by the command "panic".
var mainPanics = make(chan struct{})

func serveEach(l net.Listener, handle func(net.Conn) error) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			_ = handle(c)
		}()
	}
}

// answer runs one command and writes what it says, or "error: " and why not.
func answer(ctx context.Context, m *boot.Machine, c net.Conn) error {
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return err
	}
	out, err := run(ctx, m, strings.Fields(line))
	if err != nil {
		out = "error: " + err.Error()
	}
	_, err = io.WriteString(c, out)
	return err
}

func run(ctx context.Context, m *boot.Machine, words []string) (string, error) {
	switch words[0] {
	case "phases":
		if err := m.WaitComplete(ctx); err != nil {
			return "", err
		}
		var b strings.Builder
		for _, p := range m.Phases() {
			fmt.Fprintf(&b, "%s %d\n", p.Name, p.Took.Microseconds())
		}
		return b.String(), nil
	case "say":
		fmt.Fprintln(os.Stderr, words[1])
		return "said", nil
	case "cat":
		data, err := os.ReadFile(words[1])
		return string(data), err
	case "stage":
		return "loaded", m.LoadModules(ctx, words[1])
	case "initdata":
		d, err := m.InitData(ctx)
		if err != nil || d == nil {
			return "none", err
		}
		return fmt.Sprintf("%s:%x bound=%t aa=%s", d.Algorithm, d.Digest, d.Bound, d.Document.Data["aa.toml"]), nil
	case "extensions":
		mounted, err := m.Extensions(ctx)
		var b strings.Builder
		for _, e := range mounted {
			fmt.Fprintf(&b, "%s %s\n", e.Name, e.Path("tool", "none"))
		}
		return b.String() + "end", err
	case "run":
		return child(words[1], words[2:]...)
	case "pivot":
		return child("/init", "pivot")
	case "panic":
		close(mainPanics)
		<-ctx.Done()
	case "poweroff":
		m.PowerOff(nil)
	case "fail":
		m.PowerOff(errors.New("asked to\nfail"))
	}
	return "", fmt.Errorf("unknown command %q", words[0])
}

// child runs a program in a mount namespace of its own, through the reaper as all programs of the guest must be.
func child(name string, args ...string) (string, error) {
	var out strings.Builder
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	exit, err := reaper.Default.Start(cmd)
	if err != nil {
		return "", err
	}
	status, err := reaper.Default.Wait(cmd, exit)
	if err != nil || status != 0 {
		return "", fmt.Errorf("status %d: %s %w", status, out.String(), err)
	}
	return out.String(), nil
}

// pivot does what an OCI runtime does with a container's root.
func pivot() error {
	const root = "/run/pivot"
	if err := os.MkdirAll(root, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, ""); err != nil {
		return err
	}
	if err := unix.Chdir(root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	return unix.Unmount(".", unix.MNT_DETACH)
}
