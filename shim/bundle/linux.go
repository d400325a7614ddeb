package bundle

import (
	"context"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	ocipb "github.com/coffer-project/coffer/proto/oci"
)

// rebuildLinux makes the linux part of a container with these mounts. A shared process namespace is left to the guest's sandbox.
func rebuildLinux(opts Options, l *specs.Linux, mounts []*ocipb.Mount, d *dropped) (*ocipb.Linux, error) {
	id := opts.ContainerID
	d.note("linux.netDevices", len(l.NetDevices) > 0)
	d.note("linux.mountLabel", l.MountLabel != "")
	d.note("linux.intelRdt", l.IntelRdt != nil)
	d.note("linux.memoryPolicy", l.MemoryPolicy != nil)
	d.note("linux.personality", l.Personality != nil)
	d.note("linux.timeOffsets", len(l.TimeOffsets) > 0)

	out := &ocipb.Linux{
		// The host's cgroup tree means nothing to the guest, which has one of its own.
		CgroupsPath: "/coffer/" + id,
		Namespaces:  namespaces(l.Namespaces, opts.SharedPID, d),
		Sysctl:      sysctls(l.Sysctl, opts.Sysctls, d),
		Seccomp:     rebuildSeccomp(l.Seccomp, d),
		UIDMappings: mappings(l.UIDMappings),
		GIDMappings: mappings(l.GIDMappings),
	}
	var err error
	if out.Resources, err = rebuildResources(l.Resources, d); err != nil {
		return nil, err
	}
	handDevices(out, l, opts.Devices, d)
	if out.MaskedPaths, err = cleanPaths("masked path", l.MaskedPaths); err != nil {
		return nil, err
	}
	if out.ReadonlyPaths, err = cleanPaths("read-only path", l.ReadonlyPaths); err != nil {
		return nil, err
	}
	out.RootfsPropagation = rootPropagation(l.RootfsPropagation, mounts, d)
	return out, nil
}

// namespaces always asks for the same set, all new: inside the VM there is nothing of the host's to join. Containers
// of a pod share the guest's network.
func namespaces(in []specs.LinuxNamespace, sharedPID bool, d *dropped) []*ocipb.LinuxNamespace {
	for _, ns := range in {
		switch ns.Type {
		case specs.PIDNamespace, specs.MountNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.CgroupNamespace,
			specs.NetworkNamespace, specs.UserNamespace:
		default:
			d.note("linux.namespaces["+string(ns.Type)+"]", true)
		}
	}
	kinds := []specs.LinuxNamespaceType{
		specs.MountNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.CgroupNamespace,
	}
	if !sharedPID {
		// Kata's agent adds the process namespace of the sandbox by itself and would then see two.
		kinds = append(kinds, specs.PIDNamespace)
	}
	if slices.ContainsFunc(in, func(ns specs.LinuxNamespace) bool { return ns.Type == specs.UserNamespace }) {
		kinds = append(kinds, specs.UserNamespace)
	}
	out := make([]*ocipb.LinuxNamespace, 0, len(kinds))
	for _, kind := range kinds {
		out = append(out, &ocipb.LinuxNamespace{Type: string(kind)})
	}
	return out
}

// mappings of a user namespace, whose users are then the guest's, not this host's.
func mappings(in []specs.LinuxIDMapping) []*ocipb.LinuxIDMapping {
	var out []*ocipb.LinuxIDMapping
	for _, m := range in {
		out = append(out, &ocipb.LinuxIDMapping{ContainerID: m.ContainerID, HostID: m.HostID, Size: m.Size})
	}
	return out
}

// sysctls are the container's own and the pod's, as far as they belong to a namespace that the pod has for itself.
func sysctls(own, pod map[string]string, d *dropped) map[string]string {
	out := maps.Clone(pod)
	for key, value := range own {
		if !PodSysctl(key) {
			d.note("linux.sysctl["+key+"]", true)
			continue
		}
		if out == nil {
			out = make(map[string]string, len(own))
		}
		out[key] = value
	}
	return out
}

// PodSysctl tells whether a kernel variable belongs to a namespace that a pod has for itself.
func PodSysctl(key string) bool {
	switch key {
	case "kernel.sem", "kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.shmall", "kernel.shmmax", "kernel.shmmni",
		"kernel.shm_rmid_forced":
		return true
	}
	return strings.HasPrefix(key, "net.") || strings.HasPrefix(key, "fs.mqueue.")
}

// Resources rebuilds resource limits, for an update of a running container.
func Resources(ctx context.Context, r *specs.LinuxResources) (*ocipb.LinuxResources, error) {
	var d dropped
	out, err := rebuildResources(r, &d)
	if err != nil {
		return nil, err
	}
	d.warn(ctx)
	return out, nil
}

// rebuildResources keeps the limits of processor, memory and processes. Rules for devices come with the devices.
func rebuildResources(r *specs.LinuxResources, d *dropped) (*ocipb.LinuxResources, error) {
	out := &ocipb.LinuxResources{}
	if r == nil {
		return out, nil
	}
	d.note("linux.resources.blockIO", r.BlockIO != nil)
	d.note("linux.resources.hugepageLimits", hasHugepages(r.HugepageLimits))
	d.note("linux.resources.network", r.Network != nil)
	d.note("linux.resources.rdma", len(r.Rdma) > 0)
	for key := range r.Unified {
		d.note("linux.resources.unified["+key+"]", true)
	}
	if m := r.Memory; m != nil {
		if value(m.Limit) < -1 || value(m.Reservation) < -1 || value(m.Swap) < -1 {
			return nil, fmt.Errorf("memory limits of the container are negative: %w", errdefs.ErrInvalidArgument)
		}
		d.note("linux.resources.memory.kernel", value(m.Kernel) != 0 || value(m.KernelTCP) != 0) //nolint:staticcheck // named because it is dropped
		d.note("linux.resources.memory.swappiness", m.Swappiness != nil)
		d.note("linux.resources.memory.disableOOMKiller", value(m.DisableOOMKiller))
		d.note("linux.resources.memory.useHierarchy", value(m.UseHierarchy))
		d.note("linux.resources.memory.checkBeforeUpdate", value(m.CheckBeforeUpdate))
		out.Memory = &ocipb.LinuxMemory{Limit: value(m.Limit), Reservation: value(m.Reservation), Swap: value(m.Swap)}
	}
	if c := r.CPU; c != nil {
		d.note("linux.resources.cpu.burst", c.Burst != nil)
		d.note("linux.resources.cpu.idle", c.Idle != nil)
		d.note("linux.resources.cpu.realtime", value(c.RealtimeRuntime) != 0 || value(c.RealtimePeriod) != 0)
		// Processors and memory nodes are numbered differently in the guest.
		d.note("linux.resources.cpu.cpus", c.Cpus != "")
		d.note("linux.resources.cpu.mems", c.Mems != "")
		out.CPU = &ocipb.LinuxCPU{Shares: value(c.Shares), Quota: value(c.Quota), Period: value(c.Period)}
	}
	if r.Pids != nil && value(r.Pids.Limit) != 0 {
		out.Pids = &ocipb.LinuxPids{Limit: value(r.Pids.Limit)}
	}
	return out, nil
}

// hasHugepages: orchestrators send a limit of zero for each page size of the host.
func hasHugepages(limits []specs.LinuxHugepageLimit) bool {
	for _, l := range limits {
		if l.Limit > 0 {
			return true
		}
	}
	return false
}

func value[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}

// cleanPaths refuses paths that do not say where they lead.
func cleanPaths(what string, paths []string) ([]string, error) {
	for _, p := range paths {
		if err := checkPath(what, p); err != nil {
			return nil, err
		}
	}
	return paths, nil
}

func checkPath(what, p string) error {
	if !path.IsAbs(p) || path.Clean(p) != p || len(p) >= 4096 || strings.ContainsRune(p, 0) {
		return fmt.Errorf("%s %.200q is not a clean absolute path: %w", what, p, errdefs.ErrInvalidArgument)
	}
	return nil
}
