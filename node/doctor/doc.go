// Package doctor examines a node: whether Coffer's pods can run on it, what is wrong, and what to do about each fault.
//
// A check is a small function of an [Examination], which holds the configurations that were read and, behind [Host] and
// [Probes], everything that the checks look at: files, programs, sockets. Tests replace those two. A check never changes
// the node; what the probes make (a trial boot, a network namespace) is gone when they return.
package doctor

import (
	"context"
	"io/fs"
	"time"

	snapshotter "github.com/coffer-project/coffer/snapshotter/config"

	shim "github.com/coffer-project/coffer/shim/config"
	"github.com/coffer-project/coffer/shim/tee"
)

// Status is how serious a finding is.
type Status string

// Statuses, from good to bad.
const (
	// OK is as it should be.
	OK Status = "ok"
	// NotApplicable says that the node lacks something which it does not need as it is configured.
	NotApplicable Status = "n/a"
	// Warn lets pods run, though slower, less protected or less watched than they might be.
	Warn Status = "warn"
	// Fail keeps pods from running.
	Fail Status = "fail"
)

// Finding is what one check found.
type Finding struct {
	Check  string `json:"check"`
	Status Status `json:"status"`
	// Fact is one line: what is, not what should be.
	Fact string `json:"fact"`
	// Cure says what to do. Only warnings and failures have one.
	Cure string `json:"cure,omitempty"`
	// Micros is how long a check took that may take long, in microseconds.
	Micros int64 `json:"micros,omitempty"`
}

// Host is the machine that is examined.
type Host interface {
	ReadFile(path string) ([]byte, error)
	Stat(path string) (fs.FileInfo, error)
	Glob(pattern string) ([]string, error)
	// Open opens a device for reading and writing and closes it again.
	Open(path string) error
	// Run runs a program and returns what it writes. An error quotes its last line.
	Run(ctx context.Context, name string, args ...string) (string, error)
}

// Probes try things out.
type Probes struct {
	// Boot tells how guest code runs, by a trial boot where the configuration asks for one: kvm or tcg, and why not kvm.
	Boot func(ctx context.Context, c *shim.Config) (accelerator, reason string, err error)
	// Snapshotter makes a call to the snapshotter at a socket.
	Snapshotter func(ctx context.Context, address string) error
	// Network joins a pod's interface to a VM's, in a namespace of its own.
	Network func(ctx context.Context) error
	// Broker asks a key broker for any answer; roots are PEM certificates beside the system's.
	Broker func(ctx context.Context, url, roots string) error
	// Synchronised tells whether something keeps the clock right.
	Synchronised func() (bool, error)
	// SEV is what the processor says about memory encryption.
	SEV func() tee.SEV
	// Orphans counts the pods in a state directory whose shims were killed.
	Orphans func(ctx context.Context, stateDir string) (int, error)
}

// Paths say what to examine; empty ones mean the defaults.
type Paths struct {
	// Shim and Snapshotter are the configuration files of the two.
	Shim, Snapshotter string
	// Containerd is containerd's main configuration file.
	Containerd string
}

// Examination is one run over a node.
type Examination struct {
	Host   Host
	Probes Probes
	Paths  Paths

	shim        *shim.Config // the defaults when the file has faults
	snapshotter snapshotter.Config
	containerd  *containerdConfig // nil when it could not be read
}

// checkLimit bounds one check. The trial boot has its own, longer deadline.
const checkLimit = 20 * time.Second

// check is one of them.
type check struct {
	name string
	run  func(ctx context.Context, x *Examination) []Finding
	// limit replaces checkLimit; nil for none.
	limit func(x *Examination) time.Duration
}

// checks are all, in the order in which people read them. Those that read configurations come first.
var checks = []check{
	{name: "shim configuration", run: checkShimConfig},
	{name: "snapshotter configuration", run: checkSnapshotterConfig},
	{name: "qemu", run: checkQEMU},
	{name: "qemu devices", run: checkDevices},
	{name: "guest image", run: checkGuestImage},
	{name: "accelerator", run: checkAccelerator, limit: func(x *Examination) time.Duration {
		return x.shim.Hypervisor.ProbeTimeout.Duration + checkLimit
	}},
	{name: "memory", run: checkMemory},
	{name: "vsock", run: checkVsock},
	{name: "pod network", run: checkNetwork},
	{name: "iommu", run: checkIOMMU},
	{name: "confidential computing", run: checkTEE},
	{name: "control groups", run: checkCgroups},
	{name: "overlayfs", run: checkOverlay},
	{name: "containerd", run: checkContainerd},
	{name: "shim binary", run: checkShimBinary},
	{name: "containerd snapshotter", run: checkProxyPlugin},
	{name: "containerd handlers", run: checkHandlers},
	{name: "containerd unpacking", run: checkUnpacking},
	{name: "containerd default", run: checkDefault},
	{name: "containerd socket", run: checkContainerdSocket},
	{name: "snapshotter", run: checkSnapshotter},
	{name: "snapshotter service", run: checkService},
	{name: "key broker", run: checkBroker},
	{name: "file watches", run: checkInotify},
	{name: "clock", run: checkClock},
	{name: "left-over pods", run: checkOrphans},
}

// Run makes all checks, one after the other, and returns what they found. A check that ctx or its own deadline ends
// fails.
func (x *Examination) Run(ctx context.Context) []Finding {
	var all []Finding
	for _, c := range checks {
		limit := checkLimit
		if c.limit != nil {
			limit = c.limit(x)
		}
		ctx, cancel := context.WithTimeout(ctx, limit)
		for _, finding := range c.run(ctx, x) {
			finding.Check = c.name
			all = append(all, finding)
		}
		cancel()
	}
	return all
}

// Worst is the worst status among findings, OK when there are none.
func Worst(findings []Finding) Status {
	worst := OK
	for _, f := range findings {
		if f.Status == Fail || f.Status == Warn && worst != Fail {
			worst = f.Status
		}
	}
	return worst
}

func ok(fact string) []Finding { return []Finding{{Status: OK, Fact: fact}} }

func notApplicable(fact string) []Finding { return []Finding{{Status: NotApplicable, Fact: fact}} }

func warn(fact, cure string) []Finding { return []Finding{{Status: Warn, Fact: fact, Cure: cure}} }

func fail(fact, cure string) []Finding { return []Finding{{Status: Fail, Fact: fact, Cure: cure}} }
