package gpu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
)

// Paths of NVIDIA's programs, in the extension or in the guest's own image, after NVRC.
const (
	persistenced = "bin/nvidia-persistenced"
	smi          = "bin/nvidia-smi"
	hostEngine   = "bin/nv-hostengine"
	exporter     = "bin/dcgm-exporter"
	counters     = "etc/dcgm-exporter/default-counters.csv"
	toolkit      = "bin/nvidia-ctk"
	cdiHook      = "bin/nvidia-cdi-hook"
)

// persistencedReady is what nvidia-persistenced says once it serves.
const persistencedReady = "Local RPC services initialized"

// Time limits. Eight GPUs take a minute to start.
const (
	programLimit = 2 * time.Minute
	daemonLimit  = 2 * time.Minute
)

// specName is the file of the CDI specification.
const specName = "nvidia.yaml"

func (o Options) devices() string        { return filepath.Join(o.Root, "sys/bus/pci/devices") }
func (o Options) specifications() string { return filepath.Join(o.Root, "run/cdi") }

// duty is one step.
type duty struct {
	name string
	do   func(context.Context) error
}

// duties are the steps for one topology.
type duties struct {
	Options
	topology Topology
	place    place
	programs *programs
	modules  *modules
	health   *health
}

func newDuties(o Options, t Topology, h *health) *duties {
	p := o.place()
	d := &duties{Options: o, topology: t, place: p, health: h}
	d.programs = &programs{start: o.Start, verbose: o.Params.Verbose, heard: newHearing()}
	below := filepath.Join("lib/modules", o.Kernel)
	d.modules = &modules{insert: o.Insert, dirs: []string{filepath.Join(o.Root, below)}}
	if p.extension != nil {
		d.modules.dirs = append([]string{filepath.Join(p.dir(), below)}, d.modules.dirs...)
	}
	return d
}

// list is the order of the steps. What has no GPU of its own manages other guests' and ends with the fabric.
func (d *duties) list() []duty {
	steps := []duty{
		{"system-log", d.listen},
		{"libraries", func(context.Context) error { return d.place.expose() }},
		{"modules", d.loadModules},
	}
	own := d.topology.GPUs > 0
	if own {
		steps = append(steps, duty{"device-nodes", func(context.Context) error { return makeNodes(d.Root, d.topology, d.MakeNode) }})
	}
	if f, has := fabrics[d.topology.Mode]; has {
		steps = append(steps, duty{"fabric", func(ctx context.Context) error { return d.startFabric(ctx, f) }})
	}
	if own {
		steps = append(steps, duty{"persistence", d.startPersistenced}, duty{"clocks", d.setClocks}, duty{"monitor", d.startMonitor}, duty{"cdi", d.specify})
	}
	return append(steps, duty{"daemons", func(context.Context) error { return d.health.daemons() }})
}

// run does all steps. Modules are locked at the end, also after a failure: nothing needs another one then.
func (d *duties) run(ctx context.Context) (retErr error) {
	go d.health.watchKernel(ctx, filepath.Join(d.Root, "dev/kmsg"), d.programs.heard)
	if d.Inherited {
		return nil
	}
	lock := duty{"lock-modules", func(context.Context) error { return lockModules(d.Root) }}
	defer func() { retErr = errors.Join(retErr, do(ctx, lock)) }()
	for _, step := range d.list() {
		if err := do(ctx, step); err != nil {
			return err
		}
	}
	return nil
}

func do(ctx context.Context, step duty) error {
	begin := time.Now()
	if err := step.do(ctx); err != nil {
		return fmt.Errorf("GPU duty %s: %w", step.name, err)
	}
	log.G(ctx).WithField("duty", step.name).WithField("t_duty", time.Since(begin)).Debug("GPU duty done")
	return nil
}

// listen takes what daemons send to the system's log, where there is nobody else who does.
func (d *duties) listen(ctx context.Context) error {
	path := filepath.Join(d.Root, "dev/log")
	if _, err := os.Lstat(path); err == nil {
		return nil
	}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("open the system's log: %w", err)
	}
	context.AfterFunc(ctx, func() { _ = conn.Close() })
	go d.programs.heard.hearFrom(ctx, conn)
	return nil
}

// loadModules loads the driver, or the drivers of network cards that lead to switches. A single GPU has nobody to link to.
func (d *duties) loadModules(ctx context.Context) error {
	type module struct{ name, params string }
	var wanted []module
	if fabrics[d.topology.Mode].subnet {
		wanted = append(wanted, module{"ib-umad", ""}, module{"mlx5-ib", ""})
	}
	if d.topology.GPUs+d.topology.Switches > 0 {
		params := ""
		if d.topology.GPUs == 1 {
			params = "NVreg_NvLinkDisable=1"
		}
		wanted = append(wanted, module{"nvidia", params})
	}
	if d.topology.GPUs > 0 {
		wanted = append(wanted, module{"nvidia-uvm", ""})
	}
	for _, m := range wanted {
		if err := d.modules.load(ctx, m.name, m.params); err != nil {
			return err
		}
	}
	return nil
}

// daemon starts a program that stays, and waits until it says that it is ready, unless there is no such word. It must neither end before
// that nor take too long; if it ends later, that is a matter of health.
func (d *duties) daemon(ctx context.Context, readyWord, path string, args ...string) error {
	heard, forget := d.programs.heard.expect(readyWord)
	defer forget()
	r, err := d.programs.launch(ctx, path, args...)
	if err != nil {
		return err
	}
	exit := d.health.watch(ctx, r)
	if readyWord == "" {
		return nil
	}
	late := time.NewTimer(daemonLimit)
	defer late.Stop()
	for {
		select {
		case <-heard:
			return nil
		case err := <-exit:
			if err != nil {
				return err
			}
			exit = nil // it goes on in a process of its own
		case <-late.C:
			r.kill()
			return fmt.Errorf("%s has not said %q within %s: %w", r.name, readyWord, daemonLimit, errdefs.ErrUnavailable)
		case <-ctx.Done():
			r.kill()
			return fmt.Errorf("wait for %s: %w", r.name, ctx.Err())
		}
	}
}

func (d *duties) startFabric(ctx context.Context, f fabric) error {
	settings, err := f.settings(d.place)
	if err != nil {
		return err
	}
	args := []string{"-c", settings}
	if f.subnet {
		guid, err := portGUID(filepath.Join(d.Root, "sys/class/infiniband"))
		if err != nil {
			return err
		}
		if err := d.daemon(ctx, "", d.place.file(subnetManager), "-F", d.place.file(subnetSettings), "-g", guid, "-f", "stdout"); err != nil {
			return err
		}
		args = append(args, "-g", guid)
	}
	return d.daemon(ctx, fabricReady, d.place.file(fabricManager), args...)
}

func (d *duties) startPersistenced(ctx context.Context) error {
	if err := os.MkdirAll(filepath.Join(d.Root, "run/nvidia-persistenced"), 0o755); err != nil {
		return err
	}
	args := []string{"--verbose"}
	if d.Params.UVMPersistence {
		args = append(args, "--uvm-persistence-mode")
	}
	return d.daemon(ctx, persistencedReady, d.place.file(persistenced), args...)
}

func (d *duties) setClocks(ctx context.Context) error {
	for _, setting := range []struct {
		flag  string
		value uint32
	}{{"-lmc", d.Params.MemoryClock}, {"-lgc", d.Params.CoreClock}, {"-pl", d.Params.PowerLimit}} {
		if setting.value == 0 {
			continue
		}
		if err := d.programs.run(ctx, programLimit, d.place.file(smi), setting.flag, strconv.FormatUint(uint64(setting.value), 10)); err != nil {
			return err
		}
	}
	return nil
}

func (d *duties) startMonitor(ctx context.Context) error {
	if !d.Params.DCGM {
		return nil
	}
	if err := d.daemon(ctx, "", d.place.file(hostEngine), "--service-account", "nvidia-dcgm", "--home-dir", "/tmp"); err != nil {
		return err
	}
	return d.daemon(ctx, "", d.place.file(exporter), "-k", "-f", d.place.file(counters))
}

// specify has NVIDIA's tool write what having a GPU means.
func (d *duties) specify(ctx context.Context) error {
	dir := d.specifications()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	args := []string{"-d", "cdi", "generate", "--output=" + filepath.Join(dir, specName)}
	if d.place.extension != nil {
		args = append(args, "--driver-root="+d.place.dir(), "--dev-root="+d.Root, "--nvidia-cdi-hook-path="+d.place.file(cdiHook))
	}
	return d.programs.run(ctx, programLimit, d.place.file(toolkit), args...)
}
