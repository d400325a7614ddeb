package doctor

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"strings"

	shim "github.com/coffer-project/coffer/shim/config"
)

// overheadMiB is what a VM's monitor takes beside the guest's memory, roughly.
const overheadMiB = 160

// checkMemory tells how many pods of the default size fit into what is free now.
func checkMemory(_ context.Context, x *Examination) []Finding {
	raw, err := x.Host.ReadFile("/proc/meminfo")
	if err != nil {
		return warn(oneLine(err), "mount /proc")
	}
	info := map[string]uint64{}
	for line := range bytes.Lines(raw) {
		words := strings.Fields(string(line))
		if len(words) >= 2 {
			info[strings.TrimSuffix(words[0], ":")], _ = strconv.ParseUint(words[1], 10, 64)
		}
	}
	free, pod := info["MemAvailable"]>>10, uint64(x.shim.Hypervisor.DefaultMemoryMiB+overheadMiB)
	fact := fmt.Sprintf("%d MiB are available, a pod of the default size takes up to %d MiB", free, pod)
	if pages := info["HugePages_Total"]; pages > 0 && x.shim.Hypervisor.HugePages == shim.HugeNone {
		fact += fmt.Sprintf("; %d huge pages of %d KiB are set aside, which guests do not use (hypervisor.huge_pages)", pages, info["Hugepagesize"])
	}
	if page := uint64(x.shim.Hypervisor.HugePages.MiB()); page > 0 {
		return checkHugePages(x, page)
	}
	if free < pod {
		return warn(fact, "free memory, or lower hypervisor.default_memory_mib: a guest that the node cannot back is killed")
	}
	return ok(fact)
}

// checkHugePages tells how many pods of the default size fit into the pages that are set aside; page is their size in MiB.
func checkHugePages(x *Examination, page uint64) []Finding {
	path := fmt.Sprintf("/sys/kernel/mm/hugepages/hugepages-%dkB/free_hugepages", page<<10)
	raw, err := x.Host.ReadFile(path)
	if err != nil {
		return fail(oneLine(err), "this machine has no huge pages of that size: correct hypervisor.huge_pages")
	}
	free, err := strconv.ParseUint(strings.TrimSpace(string(raw)), 10, 64)
	if err != nil {
		return warn(path+": "+oneLine(err), "mount /sys")
	}
	need := (uint64(x.shim.Hypervisor.DefaultMemoryMiB) + page - 1) / page
	fact := fmt.Sprintf("%d huge pages of %d MiB are free, a pod of the default size takes %d", free, page, need)
	if free < need {
		return fail(fact, "set more pages aside (hugepages= on the kernel's command line, or nr_hugepages beside "+path+")")
	}
	return ok(fact)
}

func checkVsock(_ context.Context, x *Examination) []Finding {
	transport := x.shim.Hypervisor.Transport
	if transport == shim.TransportSerial {
		return notApplicable("hypervisor.transport is serial")
	}
	err := x.Host.Open("/dev/vhost-vsock")
	const cure = "modprobe vhost_vsock, and list it in /etc/modules-load.d/"
	switch {
	case err == nil:
		return ok("/dev/vhost-vsock can be opened")
	case x.shim.Hypervisor.Firmware != "":
		return fail(oneLine(err)+": guests that start with firmware are reached by vsock only", cure)
	case transport == shim.TransportVsock:
		return fail(oneLine(err), cure+"; or set hypervisor.transport = \"auto\"")
	}
	return warn(oneLine(err)+": guests are reached by a serial port", cure)
}

func checkNetwork(ctx context.Context, x *Examination) []Finding {
	if err := x.Host.Open("/dev/net/tun"); err != nil {
		return fail(oneLine(err), "modprobe tun, and list it in /etc/modules-load.d/")
	}
	if err := x.Probes.Network(ctx); err != nil {
		return fail("a pod's interface could not be joined to a tap device: "+oneLine(err), "load the kernel modules sch_ingress, cls_matchall or cls_u32, and act_mirred")
	}
	return ok("a pod's interface can be joined to a VM's (tried in a namespace of its own)")
}

// checkIOMMU is about devices that pods may be given; none is needed without.
func checkIOMMU(_ context.Context, x *Examination) []Finding {
	groups, err := x.Host.Glob("/sys/kernel/iommu_groups/*")
	if err != nil || len(groups) == 0 {
		return notApplicable("no IOMMU groups: no device can be handed to a pod (turn on the IOMMU in the firmware, and intel_iommu=on)")
	}
	how := "by VFIO containers"
	if x.Host.Open("/dev/iommu") == nil {
		how = "by iommufd"
	}
	return notApplicable(plural(len(groups), "IOMMU group") + ", devices can be handed over " + how)
}

func checkCgroups(_ context.Context, x *Examination) []Finding {
	if _, err := x.Host.Stat("/sys/fs/cgroup/cgroup.controllers"); err != nil {
		return warn("the node uses control groups v1", "boot with systemd.unified_cgroup_hierarchy=1; kubelet and containerd give v1 up")
	}
	return ok("version 2")
}

func checkOverlay(_ context.Context, x *Examination) []Finding {
	const cure = "modprobe overlay, and list it in /etc/modules-load.d/"
	raw, err := x.Host.ReadFile("/proc/filesystems")
	if err != nil {
		return warn(oneLine(err), "mount /proc")
	}
	for line := range bytes.Lines(raw) {
		if words := strings.Fields(string(line)); len(words) > 0 && words[len(words)-1] == "overlay" {
			return ok("the kernel has it")
		}
	}
	return fail("the kernel does not offer overlay, which images that stay on the host need", cure)
}

// manyPods is a number of inotify instances that a node will hardly use up; each pod takes one.
const manyPods = 1024

// checkInotify is about volumes that follow kubelet's: without an instance the shim looks at them every few seconds.
func checkInotify(_ context.Context, x *Examination) []Finding {
	const path = "/proc/sys/fs/inotify/max_user_instances"
	raw, err := x.Host.ReadFile(path)
	if err != nil {
		return warn(oneLine(err), "mount /proc")
	}
	limit, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil {
		return warn(path+": "+oneLine(err), "mount /proc")
	}
	fact := fmt.Sprintf("root may have %d inotify instances, and each pod takes one", limit)
	if limit < manyPods {
		return warn(fact, "sysctl fs.inotify.max_user_instances=8192, and in /etc/sysctl.d/")
	}
	return ok(fact)
}

func checkClock(_ context.Context, x *Examination) []Finding {
	synchronised, err := x.Probes.Synchronised()
	if err != nil {
		return warn(oneLine(err), "check that the clock is right")
	}
	if !synchronised {
		return warn("nothing keeps the clock right, and guests start with it", "run chrony or systemd-timesyncd: certificates and tokens are judged by the time")
	}
	return ok("synchronised")
}

func checkOrphans(ctx context.Context, x *Examination) []Finding {
	count, err := x.Probes.Orphans(ctx, x.shim.StateDir)
	if err != nil {
		return warn(oneLine(err), "run cofferctl as root")
	}
	if count > 0 {
		return warn(plural(count, "pod")+" below "+x.shim.StateDir+" whose shim was killed", "remove them through containerd, or by `cofferctl clean`; `cofferctl ps` lists them")
	}
	return ok("none below " + x.shim.StateDir)
}
