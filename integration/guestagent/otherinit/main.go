// Command otherinit is a guest's init that does what NVIDIA's does (NVRC, see docs of package guestpull/gpu) as far as a machine without
// GPUs can, and then becomes the agent: a read-only root with a place for everything, the kernel's file systems with the options that it
// uses, a child that stays behind, modules locked, a specification of a GPU that is the null device, with a hook. The agent is on a disk with the
// serial "agent".
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// newRoot is where the read-only root is put together.
const newRoot = "/newroot"

const common = unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV | unix.MS_RELATIME

// spec describes the "GPU". Its hook, which must run, is the tool in this root.
const spec = `cdiVersion: "0.5.0"
kind: nvidia.com/gpu
devices:
- name: "0"
  containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
containerEdits:
  env:
  - NVIDIA_VISIBLE_DEVICES=void
  hooks:
  - hookName: createContainer
    path: /usr/bin/nvidia-cdi-hook
    args: [nvidia-cdi-hook, update-ldcache]
  mounts:
  - hostPath: /usr/lib/libcuda.so.1
    containerPath: /usr/lib/libcuda.so.1
    options: [ro, nosuid, nodev, rbind, rprivate]
`

func main() {
	switch filepath.Base(os.Args[0]) {
	case "nvidia-cdi-hook":
		if err := hook(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	case "drain": // the child that stays
		select {}
	}
	if os.Getpid() != 1 {
		return
	}
	if err := start(); err != nil {
		fatal(err)
	}
}

// hook leaves a trace in the container, which is what its standard input tells of.
func hook() error {
	var state struct{ Bundle string }
	if err := json.NewDecoder(os.Stdin).Decode(&state); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(state.Bundle, "rootfs/hook-ran"), []byte(strings.Join(os.Args[1:], " ")+"\n"), 0o644)
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, "coffer-guest: fatal: other init:", err)
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	os.Exit(1)
}

func start() error {
	for _, step := range []func() error{mountOwn, loadModules, buildRoot, enterRoot, setUpGPU, leaveChild, lock} {
		if err := step(); err != nil {
			return err
		}
	}
	fmt.Fprintln(os.Stderr, "other init becomes the agent")
	return unix.Exec("/usr/bin/kata-agent", []string{"/usr/bin/kata-agent"}, []string{"KATA_ATTESTER_VARIANT=nvidia"})
}

func mountOwn() error {
	return errors.Join(
		unix.Mount("proc", "/proc", "proc", common, ""), unix.Mount("sysfs", "/sys", "sysfs", common, ""),
		unix.Mount("dev", "/dev", "devtmpfs", 0, ""))
}

// loadModules loads what NVIDIA's kernels have built in, in the order of the image's list.
func loadModules() error {
	list, err := os.ReadFile("/etc/coffer/modules")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(list)) {
		words := strings.Fields(line)
		if len(words) != 4 || words[1] != "required" || words[0] != "disks" && words[0] != "devices" {
			continue
		}
		f, err := os.Open(words[3])
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("%s: %w", words[3], err)
		}
	}
	return nil
}

// buildRoot copies what an image has to a file system of its own, and makes that read-only.
func buildRoot() error {
	if err := os.Mkdir(newRoot, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("root", newRoot, "tmpfs", 0, "mode=0755"); err != nil {
		return err
	}
	for _, dir := range []string{"dev", "etc", "lib/modules", "proc", "root", "run", "sys", "tmp", "usr/bin", "usr/lib", "var/tmp"} {
		if err := os.MkdirAll(filepath.Join(newRoot, dir), 0o755); err != nil {
			return err
		}
	}
	agent, err := diskOf("agent")
	if err != nil {
		return err
	}
	for to, from := range map[string]string{
		"usr/bin/kata-agent": agent, "usr/bin/coffer-unpack": "/coffer-unpack", "usr/bin/runc": "/usr/bin/runc",
		"usr/bin/nvidia-cdi-hook": "/init", "etc/passwd": "/etc/passwd", "etc/group": "/etc/group", "etc/hosts": "/etc/hosts",
		"etc/nsswitch.conf": "/etc/nsswitch.conf", "etc/resolv.conf": "/dev/null", "usr/lib/libcuda.so.1": "/etc/hosts",
	} {
		if err := copyFile(filepath.Join(newRoot, to), from); err != nil {
			return fmt.Errorf("%s: %w", to, err)
		}
	}
	if err := os.Symlink("/run", filepath.Join(newRoot, "var/run")); err != nil {
		return err
	}
	return unix.Mount("", newRoot, "", unix.MS_REMOUNT|unix.MS_RDONLY, "")
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// diskOf finds a disk by its serial.
func diskOf(serial string) (string, error) {
	files, err := filepath.Glob("/sys/block/vd*/serial")
	if err != nil {
		return "", err
	}
	for _, file := range files {
		if text, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(text)) == serial {
			return "/dev/" + filepath.Base(filepath.Dir(file)), nil
		}
	}
	return "", fmt.Errorf("no disk %s among %q", serial, files)
}

// enterRoot makes the new root the root, with the mounts that NVIDIA's init makes.
func enterRoot() error {
	at := func(dir string) string { return filepath.Join(newRoot, dir) }
	err := errors.Join(
		unix.Mount("dev", at("dev"), "devtmpfs", 0, ""),
		unix.Mount("proc", at("proc"), "proc", common, ""), unix.Mount("sysfs", at("sys"), "sysfs", common, ""),
		unix.Mount("run", at("run"), "tmpfs", common, "mode=0755"), unix.Mount("tmpfs", at("tmp"), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, ""))
	if err != nil {
		return err
	}
	if err := errors.Join(os.Chdir(newRoot), unix.Mount(".", "/", "", unix.MS_MOVE, "")); err != nil {
		return err
	}
	return errors.Join(unix.Chroot("."), os.Chdir("/"))
}

// setUpGPU stands in for the driver and its tools.
func setUpGPU() error {
	if err := unix.Mknod("/dev/nvidia0", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
		return err
	}
	if err := os.Mkdir("/run/cdi", 0o755); err != nil {
		return err
	}
	return os.WriteFile("/run/cdi/nvidia.yaml", []byte(spec), 0o644)
}

// leaveChild starts the child that NVIDIA's init leaves behind.
func leaveChild() error {
	child := exec.Command("/proc/self/exe")
	child.Args = []string{"drain"}
	return child.Start()
}

// lock does the last steps.
func lock() error {
	files := unix.Rlimit{Cur: 1 << 20, Max: 1 << 20}
	return errors.Join(
		os.WriteFile("/proc/sys/kernel/modules_disabled", []byte("1\n"), 0),
		unix.Setrlimit(unix.RLIMIT_NOFILE, &files), os.WriteFile("/proc/self/oom_score_adj", []byte("-997"), 0))
}
