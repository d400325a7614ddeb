// Package qemutest holds QEMU command lines against a real QEMU: each device, object, machine, accelerator and processor must
// be one that it has, with the properties that the command line gives it.
package qemutest

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/shim/vm/qemu/qmp"
)

// QEMU is a running QEMU without a machine.
type QEMU struct {
	// Version is MAJOR.MINOR.MICRO.
	Version string

	monitor  *qmp.Client
	types    []string
	machines map[string]string // types by the names that -machine takes
	known    map[string][]string
}

// Start starts the binary until the test ends.
func Start(tb testing.TB, binary string) *QEMU {
	tb.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		tb.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "qmp"), os.NewFile(uintptr(fds[1]), "qmp")
	defer ours.Close()
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		tb.Fatal(err)
	}
	cmd := exec.Command(binary, "-nodefaults", "-no-user-config", "-display", "none", "-machine", "none",
		"-chardev", "socket,id=qmp,fd=3", "-mon", "chardev=qmp,mode=control")
	cmd.ExtraFiles, cmd.Stderr = []*os.File{theirs}, os.Stderr
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	q := &QEMU{machines: map[string]string{}, known: map[string][]string{}}
	tb.Cleanup(func() {
		cancel()
		if q.monitor != nil {
			_ = q.monitor.Close() // it is killed next
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	theirs.Close()
	if q.monitor, err = qmp.New(ctx, conn); err != nil {
		tb.Fatal(err)
	}
	go func() {
		for range q.monitor.Events() { // nobody hears them
		}
	}()
	q.introduce(tb)
	return q
}

// ask runs a command, and decodes the answer unless result is nil.
func (q *QEMU) ask(name string, arguments, result any) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return q.monitor.Execute(ctx, name, arguments, result)
}

func (q *QEMU) introduce(tb testing.TB) {
	tb.Helper()
	var version struct {
		QEMU struct{ Major, Minor, Micro int }
	}
	var types []struct{ Name string }
	var machines []struct{ Name, Alias string }
	for _, question := range []struct {
		command string
		into    any
	}{{"query-version", &version}, {"qom-list-types", &types}, {"query-machines", &machines}} {
		if err := q.ask(question.command, nil, question.into); err != nil {
			tb.Fatalf("%s: %v", question.command, err)
		}
	}
	q.Version = fmt.Sprintf("%d.%d.%d", version.QEMU.Major, version.QEMU.Minor, version.QEMU.Micro)
	for _, t := range types {
		q.types = append(q.types, t.Name)
	}
	for _, m := range machines {
		q.machines[m.Name] = m.Name + "-machine"
		if m.Alias != "" {
			q.machines[m.Alias] = m.Name + "-machine"
		}
	}
}

// Has tells whether QEMU has a type.
func (q *QEMU) Has(name string) bool { return slices.Contains(q.types, name) }

// Faults holds a command line against QEMU and returns what QEMU would refuse, and how many options were looked at.
func (q *QEMU) Faults(arguments []string) (faults []error, checked int) {
	for i, option := range arguments[:max(len(arguments)-1, 0)] {
		if !slices.Contains([]string{"-device", "-object", "-machine", "-accel", "-cpu"}, option) {
			continue
		}
		checked++
		if err := q.check(option, arguments[i+1]); err != nil {
			faults = append(faults, fmt.Errorf("%s %s: %w", option, arguments[i+1], err))
		}
	}
	return faults, checked
}

func (q *QEMU) check(option, value string) error {
	if option == "-object" && strings.HasPrefix(value, "{") {
		return q.make(value)
	}
	name, rest, _ := strings.Cut(value, ",")
	kind := name
	switch option {
	case "-machine":
		kind = q.machines[name]
	case "-accel":
		kind = name + "-accel"
	case "-cpu":
		kind = name + "-x86_64-cpu"
	}
	if !q.Has(kind) {
		return fmt.Errorf("QEMU %s has no such type", q.Version)
	}
	var properties []string
	for pair := range strings.SplitSeq(rest, ",") {
		property, _, _ := strings.Cut(pair, "=")
		if option == "-cpu" {
			property = strings.TrimLeft(property, "+-")
		}
		properties = append(properties, property)
	}
	return q.compare(kind, properties)
}

// compare holds properties against those that the type has. Every object has an id, and every device may name its bus.
func (q *QEMU) compare(kind string, properties []string) error {
	has, err := q.properties(kind)
	if err != nil {
		return err
	}
	for _, property := range properties {
		if !slices.Contains(has, property) && !slices.Contains([]string{"", "id", "bus", "qom-type"}, property) {
			return fmt.Errorf("QEMU %s has no property %q of %s, only %v", q.Version, property, kind, has)
		}
	}
	return nil
}

// make makes the very object, so that QEMU judges its values, too, and removes it again.
func (q *QEMU) make(text string) error {
	var object map[string]any
	if err := json.Unmarshal([]byte(text), &object); err != nil {
		return err
	}
	kind, _ := object["qom-type"].(string)
	if !q.Has(kind) {
		return fmt.Errorf("QEMU %s has no such type", q.Version)
	}
	if strings.HasPrefix(kind, "memory-backend-") {
		return q.compare(kind, slices.Collect(maps.Keys(object))) // made, it would take what this machine may not have
	}
	if err := q.ask("object-add", json.RawMessage(text), nil); err != nil {
		return err
	}
	return q.ask("object-del", map[string]any{"id": object["id"]}, nil)
}

func (q *QEMU) properties(kind string) ([]string, error) {
	if names := q.known[kind]; names != nil {
		return names, nil
	}
	var list []struct{ Name string }
	if err := q.ask("qom-list-properties", map[string]any{"typename": kind}, &list); err != nil {
		return nil, err
	}
	for _, p := range list {
		q.known[kind] = append(q.known[kind], p.Name)
	}
	slices.Sort(q.known[kind])
	return q.known[kind], nil
}
