package gpu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/proto/lazyregexp"
)

// maxFaults bounds how many kinds of faults are told apart.
const maxFaults = 256

// fault is a kind of error that the driver reports of a GPU: the number is NVIDIA's, see its list of Xid errors.
type fault struct{ gpu, number string }

// health is how the GPUs do.
type health struct {
	mu       sync.Mutex
	topology Topology
	err      error
	over     bool // the duties
	faults   map[fault]int
	ended    map[string]error // daemons that have ended with an error
}

func newHealth() *health { return &health{faults: map[fault]int{}, ended: map[string]error{}} }

func (h *health) set(t Topology, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.topology, h.err, h.over = t, err, true
}

// watch waits for a daemon's end and tells of it once; with ctx it ends the daemon. One whose first process ends well goes on in another.
func (h *health) watch(ctx context.Context, r *running) <-chan error {
	out := make(chan error, 1)
	go func() {
		var status int
		select {
		case status = <-r.exit:
		case <-ctx.Done():
			r.kill()
			return
		}
		if status == 0 {
			out <- nil
			return
		}
		err := r.ended(status)
		h.mu.Lock()
		h.ended[r.name] = err
		h.mu.Unlock()
		log.G(ctx).WithError(err).Error("GPU daemon has ended")
		out <- err
	}()
	return out
}

// daemons fails when one has ended with an error.
func (h *health) daemons() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var all []error
	for _, err := range h.ended {
		all = append(all, err)
	}
	return errors.Join(all...)
}

// xid is the driver's report of an error in the kernel's log.
var xid = lazyregexp.New(`NVRM: Xid \(PCI:([0-9a-fA-F:.]{1,16})\): ([0-9]{1,5}),`)

// watchKernel reads the kernel's log for errors of GPUs, and for what daemons write there, until ctx ends.
func (h *health) watchKernel(ctx context.Context, path string, heard *hearing) {
	f, err := os.Open(path)
	if err != nil {
		log.G(ctx).WithError(err).Warn("errors of GPUs will not be noticed: the kernel's log cannot be read")
		return
	}
	defer f.Close()
	defer context.AfterFunc(ctx, func() { _ = f.Close() })()
	record := make([]byte, 8<<10) // the kernel's limit of one record
	for {
		n, err := f.Read(record)
		if errors.Is(err, os.ErrClosed) || n == 0 && err != nil && !isOverwritten(err) {
			return
		}
		h.hear(ctx, strings.ToValidUTF8(string(record[:n]), "?"), heard)
	}
}

// hear takes one record.
func (h *health) hear(ctx context.Context, record string, heard *hearing) {
	heard.say(record)
	found := xid.FindStringSubmatch(record)
	if found == nil {
		return
	}
	f := fault{found[1], found[2]}
	h.mu.Lock()
	if _, known := h.faults[f]; known || len(h.faults) < maxFaults {
		h.faults[f]++
	}
	h.mu.Unlock()
	log.G(ctx).WithField("gpu", f.gpu).WithField("xid", f.number).Error("GPU driver reports an error")
}

// figures reports in Prometheus' terms.
func (h *health) figures(gauge func(name, value string)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.topology.Mode == "" && h.err == nil || h.topology.Mode == ModeNone {
		return // no GPU, or not known yet
	}
	usable := "0"
	if h.over && h.err == nil {
		usable = "1"
	}
	gauge("coffer_guest_gpus", strconv.Itoa(h.topology.GPUs))
	gauge("coffer_guest_gpus_usable", usable)
	gauge("coffer_guest_gpu_daemons_ended", strconv.Itoa(len(h.ended)))
	for f, n := range h.faults {
		gauge(fmt.Sprintf("coffer_guest_gpu_xid_errors{gpu=%q,xid=%q}", f.gpu, f.number), strconv.Itoa(n))
	}
}

// isOverwritten tells that records were lost because they came faster than they were read.
func isOverwritten(err error) bool { return errors.Is(err, unix.EPIPE) }
