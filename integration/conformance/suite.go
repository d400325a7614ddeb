package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/coffer-project/coffer/integration/harness"
	"github.com/coffer-project/coffer/integration/program"
	"github.com/coffer-project/coffer/integration/registrytest"
)

// interruptGrace is how long critest gets to clean up after it was interrupted.
const interruptGrace = time.Minute

// runSuite runs critest once against a runtime on a node of its own. All logs go to <out>/<runtime>[-<n>].
func runSuite(ctx context.Context, o options, runtime string, attempt int, images *registrytest.Registry) (_ *suiteResult, retErr error) {
	name := runtime
	if attempt > 0 {
		name += "-" + strconv.Itoa(attempt+1)
	}
	out, err := filepath.Abs(filepath.Join(o.out, name))
	if err != nil {
		return nil, err
	}
	// What an earlier run has left there could be taken for this one's.
	if err := os.RemoveAll(out); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return nil, err
	}
	program.Say("starting a node for %s", name)
	node, err := harness.Start(ctx, harness.Options{
		Snapshotter: handlers[runtime],
		Mirror:      &harness.Mirror{Handler: images, Registries: registries},
	})
	if err != nil {
		return nil, err
	}
	defer func() { retErr = errors.Join(retErr, node.KeepLogs(out), node.Close()) }()

	specs, err := runCritest(ctx, o, node, runtime, out)
	if err != nil {
		return nil, err
	}
	return &suiteResult{Runtime: runtime, specs: specs}, nil
}

// runCritest runs the program on the node and reads its report.
func runCritest(ctx context.Context, o options, node *harness.Node, runtime, out string) ([]spec, error) {
	// The suite makes its log folders and host volumes here, so that they go with the node whatever becomes of it.
	temp := filepath.Join(node.Dir, "tmp")
	if err := os.MkdirAll(temp, 0o755); err != nil {
		return nil, err
	}
	critest, err := filepath.Abs(o.critest)
	if err != nil {
		return nil, err
	}
	jsonReport := filepath.Join(out, "critest.json")
	args := []string{
		"-runtime-endpoint", "unix://" + node.Socket(), "-image-endpoint", "unix://" + node.Socket(), "-runtime-handler", runtime,
		"-report-dir", out, "-ginkgo.json-report", jsonReport, "-ginkgo.v", "-ginkgo.no-color", "-ginkgo.timeout", "3h",
	}
	for _, expression := range o.focus {
		args = append(args, "-ginkgo.focus", expression)
	}
	for _, expression := range o.skip {
		args = append(args, "-ginkgo.skip", expression)
	}
	log, err := os.Create(filepath.Join(out, "critest.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	progress := newProgress(os.Stdout, runtime)
	cmd := node.Command(critest, args...)
	cmd.Env = append(os.Environ(), "TMPDIR="+temp, "XDG_CONFIG_HOME="+temp)
	cmd.Dir = temp
	cmd.Stdout, cmd.Stderr = io.MultiWriter(log, progress), log
	exit := interruptible(ctx, cmd)
	progress.end()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	// Its exit status only says whether anything failed; without a report it did not get that far.
	specs, err := readReport(jsonReport)
	if err != nil {
		return nil, fmt.Errorf("critest ended (%w) without a report: %w; see %s", orNil(exit), err, log.Name())
	}
	return specs, nil
}

func orNil(err error) error {
	if err == nil {
		return errors.New("exit status 0")
	}
	return err
}

// interruptible runs cmd. When ctx ends it asks cmd to end, and forces it after interruptGrace.
func interruptible(ctx context.Context, cmd *exec.Cmd) error {
	// An interrupt of the terminal must reach us alone, and critest by us.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	_ = cmd.Process.Signal(os.Interrupt)
	timer := time.NewTimer(interruptGrace)
	defer timer.Stop()
	select {
	case err := <-done:
		return err
	case <-timer.C:
		_ = cmd.Process.Kill()
		return <-done
	}
}
