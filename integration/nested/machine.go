package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/coffer-project/coffer/integration/nested/layout"
	"github.com/coffer-project/coffer/integration/program"
)

// passedSize is the size of the disk that is passed through, in bytes.
const passedSize = 16 << 20

// machine is the test's own machine: the outer one of the two.
type machine struct {
	// dir is for what is gone after the test, console the file of the kernel's log, and logs the folder of the node's.
	dir, console, logs string
	qemu               string
	// marker is what the disk that is passed through begins with, answer what a container is to write to it.
	marker, answer string
}

func (m *machine) path(name string) string { return filepath.Join(m.dir, name) }

// prepare makes the files that the machine boots from.
func (m *machine) prepare(ctx context.Context, p *parts) error {
	m.qemu = p.tools.QEMU
	r, err := newRoot(m.path("root"))
	if err != nil {
		return err
	}
	if err := r.fill(ctx, p); err != nil {
		return err
	}
	if err := m.unpackKernel(ctx, r, p.kernel); err != nil {
		return err
	}
	build := exec.CommandContext(ctx, "go", "build", "-trimpath=false", "-o", filepath.Join(r.dir, layout.Init), "./integration/nested/node")
	build.Dir, build.Env = p.repository, append(os.Environ(), "CGO_ENABLED=0")
	if err := quietly(build); err != nil {
		return err
	}
	if err := makeDisk(ctx, r.dir, m.path("root.img")); err != nil {
		return err
	}
	if err := m.makePassed(); err != nil {
		return err
	}
	return os.RemoveAll(r.dir)
}

// makePassed makes the disk that is passed through.
func (m *machine) makePassed() error {
	m.marker, m.answer = rand.Text(), rand.Text()
	if err := os.WriteFile(m.path("passed.img"), []byte(m.marker+"\n"), 0o600); err != nil {
		return err
	}
	return os.Truncate(m.path("passed.img"), passedSize)
}

// checkAnswer looks for what a container was to write to the disk: a device that the machine emulates has then read the memory of the
// container's own machine.
func (m *machine) checkAnswer() error {
	disk, err := os.ReadFile(m.path("passed.img"))
	if err != nil {
		return err
	}
	if !bytes.HasPrefix(disk[layout.AnswerOffset:], []byte(m.answer+"\n")) {
		return errors.New("the disk does not have what a container says it has written")
	}
	return nil
}

// unpackKernel takes the kernel to boot, and its modules with the lists by which modprobe finds them.
func (m *machine) unpackKernel(ctx context.Context, r *root, deb string) error {
	tree := m.path("kernel")
	if err := quietly(exec.CommandContext(ctx, "dpkg-deb", "-x", deb, tree)); err != nil {
		return err
	}
	images, err := filepath.Glob(filepath.Join(tree, "boot/vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return fmt.Errorf("kernel package %s has %d kernels, want 1", deb, len(images))
	}
	if err := os.Rename(images[0], m.path("vmlinuz")); err != nil {
		return err
	}
	release := strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-")
	if err := quietly(exec.CommandContext(ctx, "busybox", "depmod", "-b", tree, release)); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(tree, "lib/modules"), filepath.Join(r.dir, "usr/lib/modules")); err != nil {
		return err
	}
	return os.RemoveAll(tree)
}

func (m *machine) args() []string {
	return []string{
		"-accel", "tcg", "-M", "q35", "-cpu", "max,-erms,-fsrm", "-smp", "2", "-m", "4096",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-device", "intel-iommu,intremap=on,caching-mode=on",
		"-drive", "file=" + m.path("root.img") + ",format=raw,if=none,id=root,cache=unsafe",
		"-device", "pcie-root-port,id=port0,chassis=1,slot=1",
		"-device", "nvme,serial=root,drive=root,bus=port0",
		"-drive", "file=" + m.path("passed.img") + ",format=raw,if=none,id=passed",
		"-device", "pcie-root-port,id=port1,chassis=2,slot=2",
		"-device", "nvme,drive=passed,bus=port1,serial=" + layout.Serial,
		// A conventional bus has no access control: its devices can reach each other, and share an IOMMU group.
		"-device", "pcie-root-port,id=port2,chassis=3,slot=3", "-device", "pcie-pci-bridge,id=bus,bus=port2",
		"-device", "edu,bus=bus,addr=1", "-device", "edu,bus=bus,addr=2",
		"-serial", "file:" + m.console,
		"-chardev", "stdio,id=progress,signal=off", "-serial", "chardev:progress",
		"-kernel", m.path("vmlinuz"),
		"-append", "console=" + layout.Console + " quiet panic=-1 no_timer_check tsc=reliable mitigations=off cryptomgr.notests " +
			"intel_iommu=on iommu=pt rw rootwait root=PARTUUID=" + rootUUID +
			" init=" + layout.Init +
			" " + layout.MarkerVariable + "=" + m.marker + " " + layout.AnswerVariable + "=" + m.answer,
	}
}

// run boots the machine, shows what its tests say, and returns how they ended.
func (m *machine) run(ctx context.Context) error {
	verdict := &verdict{}
	cmd := exec.CommandContext(ctx, m.qemu, m.args()...)
	cmd.Stdout, cmd.Stderr = verdict, os.Stderr
	if err := cmd.Run(); err != nil {
		return errors.Join(fmt.Errorf("run the machine: %w", err), context.Cause(ctx))
	}
	program.Say("the machine took %.0f s of processor time", cmd.ProcessState.UserTime().Seconds()+cmd.ProcessState.SystemTime().Seconds())
	switch last := verdict.last(); {
	case last == layout.Success:
		return m.checkAnswer()
	case strings.HasPrefix(last, layout.Failure):
		return errors.New(strings.TrimPrefix(last, layout.Failure))
	}
	return fmt.Errorf("the machine ended without a verdict: see %s", m.console)
}

// saveLogs copies what the node wrote from the machine's disk.
func (m *machine) saveLogs() error {
	if err := os.MkdirAll(m.logs, 0o755); err != nil {
		return err
	}
	program.Say("the node's logs are in %s", m.logs)
	return quietly(exec.Command("debugfs", "-R", fmt.Sprintf("rdump %s %s", layout.Temp, m.logs), partitionOf(m.path("root.img"))))
}

// quietly runs a command and quotes its output in the error.
func quietly(cmd *exec.Cmd) error {
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
