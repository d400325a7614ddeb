package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/coffer-project/coffer/integration/harness"
)

const (
	// testTimeout is what one test may take; its process then ends with a trace of what it waits for.
	testTimeout = 3 * time.Minute
	// stopTimeout is what the process may take to end after that, before it is killed.
	stopTimeout = 30 * time.Second
)

// listTests names the tests of the binary that are to be run, in its order.
func listTests(ctx context.Context, tests, run string) ([]string, error) {
	skip, err := regexp.Compile(ownDaemon)
	if err != nil {
		return nil, err
	}
	listed, err := output(ctx, ".", tests, "-test.short", "-test.list", run)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(strings.Fields(listed), func(name string) bool {
		return !strings.HasPrefix(name, "Test") || skip.MatchString(name)
	}), nil
}

// runTests runs the tests one after the other, because emulated VMs on a few cores would time each other out. Each has a
// process of its own: one that hangs takes no other with it.
func runTests(ctx context.Context, o options, node *harness.Node, tests string) (map[string]outcome, error) {
	names, err := listTests(ctx, tests, o.run)
	if err != nil {
		return nil, fmt.Errorf("list the tests: %w", err)
	}
	path := filepath.Join(o.out, "tests.log")
	log, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	results := map[string]outcome{}
	for _, name := range names {
		began := time.Now()
		var text strings.Builder
		if err := runTest(ctx, name, node, tests, io.MultiWriter(log, &text)); err != nil {
			return nil, fmt.Errorf("run %s: %w", name, err)
		}
		result, ok := parseResults(text.String())[name]
		if !ok {
			result = failed // its process ended before it
		}
		results[name] = result
		fmt.Printf("%s\t%s\t%.0f s\n", result, name, time.Since(began).Seconds())
		if result == failed {
			if err := removeAll(node); err != nil {
				fmt.Printf("\t%s left what cannot be removed: %v\n", name, err)
			}
		}
	}
	return results, nil
}

// runTest runs one test; its result is in what it writes.
func runTest(ctx context.Context, name string, node *harness.Node, tests string, to io.Writer) error {
	temp := filepath.Join(node.Dir, "tmp")
	if err := os.MkdirAll(temp, 0o755); err != nil {
		return err
	}
	command, environment := node.AsInternet(tests, "-test.v", "-test.root", "-test.run", "^"+name+"$", "-test.timeout", testTimeout.String(),
		"-no-daemon", "-no-criu", "-no-shim-cgroup", "-address", node.Socket())
	cmd := node.Command(command[0], command[1:]...)
	cmd.Env = append(append(os.Environ(), environment...),
		"PATH="+node.Tools.CacheBin+":"+os.Getenv("PATH"), "RUNC_FLAVOR=coffer", "TEST_RUNTIME=io.containerd.coffer.v2", "TEST_SNAPSHOTTER=coffer", "TMPDIR="+temp)
	cmd.Dir = temp
	cmd.Stdout, cmd.Stderr = to, to
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = stopTimeout // what a test has left may hold the output open
	if err := cmd.Start(); err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, testTimeout+stopTimeout)
	defer cancel()
	stop := context.AfterFunc(limited, func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
	defer stop()
	err := cmd.Wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if _, ok := errors.AsType[*exec.ExitError](err); ok || errors.Is(err, exec.ErrWaitDelay) {
		return nil
	}
	return err
}
