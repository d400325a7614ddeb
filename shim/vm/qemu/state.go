package qemu

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// stateFile is the file in the state directory by which a later process finds QEMU.
const stateFile = "qemu.json"

// record identifies a process: a pid alone may have been given to another since.
type record struct {
	PID int `json:"pid"`
	// StartTime is field 22 of /proc/PID/stat: clock ticks since the machine booted.
	StartTime uint64 `json:"start_time"`
	// BootID tells start times of different boots apart.
	BootID string `json:"boot_id"`
}

func recordOf(pid int) (record, error) {
	start, err := startTime(pid)
	if err != nil {
		return record{}, err
	}
	id, err := bootID()
	return record{PID: pid, StartTime: start, BootID: id}, err
}

func (r record) write(dir string) error {
	raw, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, stateFile), raw)
}

// writeFile replaces a file in one step, so that no reader and no crash sees half of it.
func writeFile(path string, raw []byte) (retErr error) {
	file, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if retErr != nil {
			os.Remove(file.Name())
		}
	}()
	_, err = file.Write(raw)
	if err = errors.Join(err, file.Sync(), file.Close()); err != nil {
		return err
	}
	return os.Rename(file.Name(), path)
}

// startTime reads field 22 of /proc/pid/stat. The second field is the program's name in parentheses, which may hold
// anything, so that counting starts after the last one.
func startTime(pid int) (uint64, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	fields := bytes.Fields(raw[bytes.LastIndexByte(raw, ')')+1:])
	if len(fields) < 20 {
		return 0, fmt.Errorf("parse /proc/%d/stat: %w", pid, errdefs.ErrInvalidArgument)
	}
	return strconv.ParseUint(string(fields[19]), 10, 64)
}

func bootID() (string, error) {
	raw, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return string(bytes.TrimSpace(raw)), err
}

// cleanup ends the process that the state file in dir names, if it still runs, and removes the file.
func cleanup(ctx context.Context, dir string) error {
	path := filepath.Join(dir, stateFile)
	raw, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read vm state: %w", err)
	}
	var r record
	// A file that is no record names no process: the parent death signal is what ended QEMU.
	if json.Unmarshal(raw, &r) == nil && r.PID > 1 {
		if err := r.kill(ctx); err != nil {
			return fmt.Errorf("kill qemu %d: %w", r.PID, err)
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove vm state: %w", err)
	}
	return nil
}

// kill ends the process and waits until it is gone. Nothing happens when it is another one by now.
func (r record) kill(ctx context.Context) error {
	// The pidfd comes before the comparison: from then on the process cannot become another one.
	fd, err := unix.PidfdOpen(r.PID, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open pidfd: %w", err)
	}
	process := os.NewFile(uintptr(fd), "pidfd")
	defer process.Close()
	now, err := recordOf(r.PID)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) || err == nil && now != r {
		return nil
	}
	if err != nil {
		return err
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return waitPidfd(ctx, fd)
}

// waitPidfd returns when the process has ended. The poll is woken by an eventfd when ctx ends.
func waitPidfd(ctx context.Context, pidfd int) error {
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(wake)
	woken := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(woken)
		_, _ = unix.Write(wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	})
	defer func() {
		if !stop() {
			<-woken // before the descriptor is closed
		}
	}()
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}, {Fd: int32(wake), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(fds, -1)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("wait for its end: %w", err)
		case fds[0].Revents != 0:
			return nil
		case fds[1].Revents != 0:
			return fmt.Errorf("wait for its end: %w", ctx.Err())
		}
	}
}
