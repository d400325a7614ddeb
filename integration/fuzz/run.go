package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	// minimizing bounds how long the fuzzer makes one input smaller: its own default of a minute would take the time that a
	// target has.
	minimizing = "200x"
	// overtime is what a target may take beyond its time, to be built and to end.
	overtime = 10 * time.Minute
)

// result is what came of one target.
type result struct {
	target      target
	took        time.Duration
	execs       int64
	interesting int64
	corpus      int64
	log, input  string // input is the file of one that failed
	err         error
}

// run fuzzes one target in processes of their own, which end with the context.
func run(ctx context.Context, t target, opts options) result {
	r := result{target: t, log: filepath.Join(opts.logs, strings.ReplaceAll(t.String(), "/", "_")+".log")}
	ctx, cancel := context.WithTimeout(ctx, opts.time+overtime)
	defer cancel()
	args := []string{
		"test", "-run=^$", "-fuzz=^" + t.name + "$", "-fuzztime=" + opts.time.String(), "-fuzzminimizetime=" + minimizing, "-timeout=0",
	}
	if opts.parallel > 0 {
		args = append(args, "-parallel="+strconv.Itoa(opts.parallel))
	}
	cmd := exec.CommandContext(ctx, "go", append(args, ".")...)
	cmd.Dir = t.dir
	// The fuzzer's workers are grandchildren.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGINT) }
	cmd.WaitDelay = 10 * time.Second

	start := time.Now()
	out, err := cmd.CombinedOutput()
	r.took = time.Since(start)
	if cmd.Process != nil {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // what did not end by itself; mostly there is nothing left
	}
	r.read(out)
	switch {
	case err == nil && r.execs == 0:
		// A target that skips itself passes without having run.
		r.err = errors.New("nothing was run")
	case err != nil:
		r.err = fmt.Errorf("go test: %w (%s)", err, firstLine(out))
	}
	if werr := os.WriteFile(r.log, out, 0o644); r.err == nil && werr != nil {
		r.err = werr
	}
	return r
}

// firstLine is what go test or the fuzzer said first, cut short; before it, the compiler names the package.
func firstLine(out []byte) string {
	for line := range bytes.Lines(out) {
		if line = bytes.TrimSpace(line); len(line) > 0 && line[0] != '#' {
			return string(line[:min(len(line), 120)])
		}
	}
	return "no output"
}

var (
	// progress is a line of the fuzzer like: fuzz: elapsed: 3s, execs: 33147 (10403/sec), new interesting: 9 (total: 118)
	progress = regexp.MustCompile(`^fuzz: elapsed: \S+, execs: (\d+) \(\d+/sec\), new interesting: (\d+) \(total: (\d+)\)$`)
	// failing is how it names the file of an input that failed.
	failing = regexp.MustCompile(`^\s*Failing input written to (\S+)$`)
)

// read takes the figures from what the fuzzer said.
func (r *result) read(out []byte) {
	for line := range bytes.Lines(out) {
		line = bytes.TrimRight(line, "\r\n")
		if m := progress.FindSubmatch(line); m != nil {
			for i, to := range []*int64{&r.execs, &r.interesting, &r.corpus} {
				*to, _ = strconv.ParseInt(string(m[i+1]), 10, 64) // digits; more than fit are as good as the largest
			}
		}
		if m := failing.FindSubmatch(line); m != nil {
			r.input = filepath.Join(r.target.dir, string(m[1]))
		}
	}
}
