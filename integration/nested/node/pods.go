package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coffer-project/coffer/integration/harness"
	"github.com/coffer-project/coffer/integration/nested/layout"
)

// runPod starts a pod that has a device of the CDI specification.
func (s *tests) runPod(ctx context.Context, handler, name, device string) (*harness.Pod, error) {
	annotations, err := s.node.PodAnnotations(harness.Guest{})
	if err != nil {
		return nil, err
	}
	annotations["cdi.k8s.io/test"] = cdiKind + "=" + device
	return s.node.CRI.RunPod(ctx, handler, s.node.CRI.PodConfig(name, annotations))
}

// wantError checks that a pod was refused for the right reason.
func wantError(err error, words ...string) error {
	if err == nil {
		return errors.New("the pod started")
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			return fmt.Errorf("the error does not say %q: %w", word, err)
		}
	}
	return nil
}

// refuseShared asks for one of two devices between which the IOMMU does not stand.
func refuseShared(ctx context.Context, s *tests, d *devices) error {
	before := driver(d.shared[0])
	_, err := s.runPod(ctx, "coffer", "shared", cdiShared)
	if err := wantError(err, "shared", d.shared[0], d.shared[1]); err != nil {
		return err
	}
	if now := driver(d.shared[0]); now != before {
		return fmt.Errorf("the refused device was bound to %q", now)
	}
	return nil
}

// failedStart gives a pod up while its VM boots with the device.
func failedStart(ctx context.Context, s *tests, d *devices) error {
	_, err := s.runPod(ctx, impatient, "failed", cdiSingle)
	if err := wantError(err, "guest.boot_timeout"); err != nil {
		return err
	}
	return d.back(ctx)
}

// killedNode kills the shim of a pod that is starting, and then the VM, so that nobody can give the device back in time.
func killedNode(ctx context.Context, s *tests, d *devices) error {
	started := make(chan error, 1)
	go func() {
		_, err := s.runPod(ctx, "coffer", "killed", cdiSingle)
		started <- err
	}()
	vm, err := awaitProcess(ctx, "vfio-pci,", "host="+d.single.address)
	if err != nil {
		return err
	}
	shim, err := awaitProcess(ctx, filepath.Base(s.node.Tools.Shim), s.node.Dir)
	if err != nil {
		return err
	}
	if err := errors.Join(unix.Kill(shim, unix.SIGKILL), unix.Kill(vm, unix.SIGKILL)); err != nil {
		return err
	}
	if err := wantError(<-started); err != nil {
		return err
	}
	return failedStart(ctx, s, d)
}

// passThrough runs a container that reads and writes the disk, refuses the device to a second pod, and kills the VM.
func passThrough(ctx context.Context, s *tests, d *devices) error {
	pod, err := s.runPod(ctx, "coffer", "passed", cdiSingle)
	if err != nil {
		return err
	}
	report, err := pod.Report(ctx)
	if err != nil {
		return err
	}
	for _, phase := range report.Boot {
		s.say("the pod's start: %s took %.1f s", phase.Name, float64(phase.Micros)/1e6)
	}
	_, err = s.runPod(ctx, impatient, "second", cdiSingle)
	if err := wantError(err, "in use", d.single.address); err != nil {
		return fmt.Errorf("a second pod for the same device: %w", err)
	}
	if err := s.useDisk(ctx, pod); err != nil {
		return err
	}
	vm, err := s.node.VMPID(pod)
	if err != nil {
		return err
	}
	s.say("killing the VM")
	if err := unix.Kill(vm, unix.SIGKILL); err != nil {
		return err
	}
	if err := pod.Remove(ctx); err != nil {
		return err
	}
	return d.back(ctx)
}

// script tells a container's view of its devices. Both numbers of a PCI device are on one line.
// It starts as few programs as it can.
const script = `for d in /sys/bus/pci/devices/*; do read vendor <$d/vendor; read device <$d/device; echo pci $vendor $device; done
dd if=/dev/nvme0n1 bs=512 count=1 2>/dev/null | head -n 1
printf '%%s\n' %s | dd of=/dev/nvme0n1 bs=512 seek=%d conv=fsync 2>/dev/null && echo written`

// useDisk runs the container.
func (s *tests) useDisk(ctx context.Context, pod *harness.Pod) error {
	if err := pod.Pull(ctx, s.image); err != nil {
		return err
	}
	container, err := pod.CreateFrom(ctx, &runtime.ContainerConfig{
		Metadata: &runtime.ContainerMetadata{Name: "disk"}, LogPath: "disk.log",
		Image:      &runtime.ImageSpec{Image: s.image, UserSpecifiedImage: s.image, RuntimeHandler: pod.Handler},
		Command:    []string{"/bin/sh", "-c", fmt.Sprintf(script, os.Getenv(layout.AnswerVariable), layout.AnswerOffset/512)},
		CDIDevices: []*runtime.CDIDevice{{Name: cdiKind + "=" + cdiSingle}},
		Linux: &runtime.LinuxContainerConfig{SecurityContext: &runtime.LinuxContainerSecurityContext{
			NamespaceOptions: &runtime.NamespaceOption{Pid: runtime.NamespaceMode_CONTAINER},
		}},
	})
	if err != nil {
		return err
	}
	s.say("the container is created")
	output, err := container.Run(ctx)
	if err != nil {
		return err
	}
	for line := range strings.Lines(output) {
		s.say("container: %s", strings.TrimSpace(line))
	}
	for _, want := range []string{"pci 0x1b36 0x0010\n", os.Getenv(layout.MarkerVariable) + "\n", "written\n"} {
		if !strings.Contains(output, want) {
			return fmt.Errorf("the container did not say %q", want)
		}
	}
	return nil
}

// awaitProcess waits for a process with these words on its command line.
func awaitProcess(ctx context.Context, words ...string) (pid int, err error) {
	err = harness.Eventually(ctx, func(context.Context) error {
		files, err := filepath.Glob("/proc/[0-9]*/cmdline")
		if err != nil {
			return err
		}
		for _, file := range files {
			raw, err := os.ReadFile(file)
			if err != nil {
				continue // it has ended meanwhile
			}
			line, all := string(bytes.ReplaceAll(raw, []byte{0}, []byte{' '})), true
			for _, word := range words {
				all = all && strings.Contains(line, word)
			}
			if all {
				pid, err = strconv.Atoi(filepath.Base(filepath.Dir(file)))
				return err
			}
		}
		return fmt.Errorf("no process has %q on its command line", words)
	})
	return pid, err
}
