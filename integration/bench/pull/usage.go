package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// clockTick is the unit of the times in /proc/PID/stat, in seconds: USER_HZ, which is 100 on every Linux that Go runs on.
const clockTick = 0.01

// sampleEvery is how often memory and target are looked at; shorter peaks may be missed.
const sampleEvery = 10 * time.Millisecond

// peaks follows the memory of processes and the fill of a file system until it is stopped.
type peaks struct {
	target string
	before int64 // bytes on the target at the start
	roots  []int
	stop   chan struct{}
	done   chan struct{}

	memory, bytes int64
}

// watch starts to follow processes, with all their descendants, and a target.
func watch(target string, pids ...int) *peaks {
	p := &peaks{target: target, before: usedBytes(target), roots: pids, stop: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(p.done)
		tick := time.NewTicker(sampleEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				p.sample()
			case <-p.stop:
				p.sample()
				return
			}
		}
	}()
	return p
}

// end stops and returns the highest memory of all processes together and the most bytes on the target.
func (p *peaks) end() (memory, target int64) {
	close(p.stop)
	<-p.done
	return p.memory, p.bytes
}

func (p *peaks) sample() {
	p.bytes = max(p.bytes, usedBytes(p.target)-p.before)
	var now, high int64
	pids := tree(p.roots)
	for i, pid := range pids {
		if slices.ContainsFunc(pids[:i], func(other int) bool { return sameMemory(pid, other) }) {
			continue // it was started just now, and still is its parent's shadow
		}
		pss, hwm := memoryOf(pid)
		now += pss
		high = max(high, hwm)
	}
	// One process's own mark misses nothing between two looks, and counts no page twice.
	p.memory = max(p.memory, now, high)
}

func usedBytes(dir string) int64 {
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) != nil {
		return 0
	}
	return int64(st.Blocks-st.Bfree) * st.Bsize
}

// tree lists processes and their descendants that live.
func tree(roots []int) []int {
	list := append([]int{}, roots...)
	for i := 0; i < len(list); i++ {
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", list[i]))
		for _, path := range tasks {
			raw, _ := os.ReadFile(path) // it may have ended
			for word := range strings.FieldsSeq(string(raw)) {
				if pid, err := strconv.Atoi(word); err == nil {
					list = append(list, pid)
				}
			}
		}
	}
	return list
}

// sameMemory reports whether two processes use one address space (kcmp(2), KCMP_VM).
func sameMemory(a, b int) bool {
	const vm = 1
	order, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(a), uintptr(b), vm, 0, 0, 0)
	return errno == 0 && order == 0
}

// memoryOf returns a process's share of what is in memory now (a page that two processes have is half of each one's), and
// the most that it had there itself, in bytes; 0 when it has ended.
func memoryOf(pid int) (now, high int64) {
	return memoryField(pid, "smaps_rollup", "Pss:"), memoryField(pid, "status", "VmHWM:")
}

func memoryField(pid int, file, name string) int64 {
	raw, _ := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file)) // it may have ended
	for line := range bytes.Lines(raw) {
		if fields := bytes.Fields(line); len(fields) > 1 && string(fields[0]) == name {
			kib, _ := strconv.ParseInt(string(fields[1]), 10, 64)
			return kib << 10
		}
	}
	return 0
}

// daemonCPU is the time that a process and its ended children have spent, in seconds.
func daemonCPU(pid int) (float64, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The name in brackets may hold anything; utime, stime, cutime and cstime are the 12th to 15th fields behind it.
	_, rest, _ := strings.Cut(string(raw), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 15 {
		return 0, fmt.Errorf("read CPU time of process %d: unknown format", pid)
	}
	var ticks int64
	for _, field := range fields[11:15] {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read CPU time of process %d: %w", pid, err)
		}
		ticks += n
	}
	return float64(ticks) * clockTick, nil
}

// command is one program of a tool.
type command struct {
	args []string
	env  []string
}

// runAll runs programs one after the other and returns what they took together; output goes nowhere but into errors.
func runAll(ctx context.Context, target string, commands ...command) (usage, []byte, error) {
	var (
		u    usage
		last []byte
	)
	for _, c := range commands {
		cmd := exec.CommandContext(ctx, c.args[0], c.args[1:]...)
		cmd.Env = append(os.Environ(), c.env...)
		var out, errs bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errs
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		start := time.Now()
		if err := cmd.Start(); err != nil {
			return u, nil, err
		}
		w := watch(target, cmd.Process.Pid)
		err := cmd.Wait()
		u.Wall += time.Since(start).Seconds()
		memory, bytes := w.end()
		if err != nil {
			return u, nil, fmt.Errorf("%s: %w: %s", strings.Join(c.args, " "), err, strings.TrimSpace(errs.String()))
		}
		state := cmd.ProcessState
		u.CPU += (state.UserTime() + state.SystemTime()).Seconds()
		u.memory, u.target = max(u.memory, memory), max(u.target, w.before+bytes)
		last = out.Bytes()
	}
	return u, last, nil
}
