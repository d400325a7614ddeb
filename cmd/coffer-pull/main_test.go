package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-project/coffer/guestpull/unpack/worker/workertest"
	rt "github.com/coffer-project/coffer/integration/registrytest"
	"github.com/coffer-project/coffer/integration/require"
)

// mainVariable makes the test binary the program itself, for what only a process can show: signals and exit codes.
const mainVariable = "COFFER_PULL_TEST_MAIN"

// workerVariable names the program for workers, which the test binary is not.
const workerVariable = "COFFER_PULL_TEST_WORKER"

func TestMain(m *testing.M) {
	workerProgram = func() (string, error) { return os.Getenv(workerVariable), nil }
	if os.Getenv(mainVariable) != "" {
		main()
		os.Exit(0)
	}
	program, err := workertest.Build()
	if err == nil {
		err = os.Setenv(workerVariable, program)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// process is the program as a process. Its output is complete after Wait.
func process(t *testing.T, args ...string) (cmd *exec.Cmd, stdout, stderr *bytes.Buffer) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd = exec.CommandContext(t.Context(), self, args...)
	cmd.Env = append(os.Environ(), mainVariable+"=1")
	stdout, stderr = new(bytes.Buffer), new(bytes.Buffer)
	cmd.Stdout, cmd.Stderr = stdout, stderr
	return cmd, stdout, stderr
}

// eventually waits for something in another process.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for !ok() {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			t.Fatalf("%s: does not happen", what)
		}
	}
}

func demo(r *rt.Registry) string {
	return r.Put("demo", "1", rt.NewImage([]rt.Layer{
		rt.NewLayer(rt.Gzip, rt.Files(map[string]string{"hello": "one", "base": "b"})...),
		rt.NewLayer(rt.Zstd, rt.Files(map[string]string{"hello": "two"})...),
	}, func(c *ocispec.Image) { c.Config.Env = []string{"A=b"} }, nil))
}

// stalled is an image whose upper layer never comes to its end.
func stalled(r *rt.Registry) (ref string, waits func() bool) {
	lower, upper := rt.NewLayer(rt.Gzip, rt.Files(map[string]string{"a": "1"})...), rt.NewLayer(rt.Gzip, rt.Files(map[string]string{"a": "2"})...)
	r.Inject(rt.Fault{Kind: rt.LayerBlob, Digest: upper.Desc.Digest.String(), Action: rt.Stall})
	ref = r.Put("stalled", "1", rt.NewImage([]rt.Layer{lower, upper}, nil, nil))
	return ref, func() bool { return r.Count(rt.LayerBlob, "GET") >= 2 }
}

func TestPull(t *testing.T) {
	require.Root(t)
	r := rt.Start(t)
	ref := demo(r)
	run := func(args ...string) (string, error) {
		var out bytes.Buffer
		a := app()
		a.Writer, a.ErrWriter = &out, &out
		err := a.RunContext(t.Context(), append([]string{"coffer-pull", "--plain-http", r.Addr(), "--platform", "linux/amd64"}, args...))
		return out.String(), err
	}
	text, err := run(ref, filepath.Join(t.TempDir(), "new"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"decompress", "UNPACKED", "/new/layers/"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in the output:\n%s", want, text)
		}
	}
	dir := t.TempDir()
	if text, err = run("--json", ref, dir); err != nil {
		t.Fatal(err)
	}
	var got report
	if err := json.Unmarshal([]byte(text), &got); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	if got.Reference != ref || got.ManifestDigest == "" || got.Micros <= 0 || len(got.Phases) != 8 || got.UnpackedBytes != 7 || got.Config.Env[0] != "A=b" {
		t.Errorf("report is %+v", got)
	}
	if len(got.Layers) != 2 || got.FetchedBytes != got.Layers[0].CompressedBytes+got.Layers[1].CompressedBytes {
		t.Fatalf("layers are %+v of %d bytes", got.Layers, got.FetchedBytes)
	}
	for i, want := range []string{"one", "two"} {
		if body, err := os.ReadFile(filepath.Join(got.Layers[i].Dir, "hello")); err != nil || string(body) != want {
			t.Errorf("hello in layer %d is %q, %v", i, body, err)
		}
	}
	if left, err := filepath.Glob(filepath.Join(dir, "*")); err != nil || len(left) != 1 {
		t.Errorf("the folder holds %q, %v", left, err)
	}
	if _, err := run(ref, dir); err == nil || !strings.Contains(err.Error(), "is not empty") {
		t.Errorf("into a folder that is in use: %v", err)
	}
	if _, err := os.Stat(got.Layers[0].Dir); err != nil {
		t.Errorf("and now a layer is gone: %v", err)
	}
}

// TestExitCodes also finds the folder as it was.
func TestExitCodes(t *testing.T) {
	require.Root(t)
	r := rt.Start(t)
	ref := demo(r)
	foreign := rt.NewLayer(rt.Gzip, rt.Entry{Name: "f"})
	foreign.Desc.MediaType = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
	bad := r.Put("bad", "1", rt.NewImage([]rt.Layer{foreign}, nil, nil))
	large := r.Put("large", "1", rt.NewImage([]rt.Layer{rt.NewLayer(rt.Plain, rt.Entry{Name: "f", Body: strings.Repeat("x", 4<<20)})}, nil, nil))
	locked := rt.Start(t)
	locked.RequireLogin("user", "password")
	secret := demo(locked)
	gone := rt.Start(t)
	absent := demo(gone)
	if err := gone.Close(); err != nil {
		t.Fatal(err)
	}
	cases := map[string]struct {
		args []string
		code int
		text string
	}{
		"no arguments":        {nil, 2, "want IMAGE and DIR"},
		"no folder":           {[]string{ref}, 2, "want IMAGE and DIR"},
		"unknown option":      {[]string{"--colour", ref, "DIR"}, 2, "colour"},
		"argument for serve":  {[]string{"serve", "x"}, 2, "no arguments"},
		"two key sources":     {[]string{"--key-file", "x", "--kbs-url", "http://127.0.0.1:1", ref, "DIR"}, 1, "exclude each other"},
		"missing initdata":    {[]string{"--initdata", "/does/not/exist", ref, "DIR"}, 1, "read initdata"},
		"missing CA":          {[]string{"--ca", "/does/not/exist", ref, "DIR"}, 1, "read CA file"},
		"no such image":       {[]string{r.Addr() + "/none:1", "DIR"}, 3, "not found"},
		"no registry":         {[]string{absent, "DIR"}, 4, "refused"},
		"no credentials":      {[]string{secret, "DIR"}, 5, "pull image"},
		"image not supported": {[]string{bad, "DIR"}, 6, "foreign layer"},
		"wrong platform":      {[]string{"--platform", "linux/s390x", ref, "DIR"}, 6, "s390x"},
		"options come last":   {[]string{ref, "DIR", "--platform", "linux/s390x"}, 6, "s390x"},
		"no room":             {[]string{large, "DIR"}, 7, "pull image"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			parent := require.Tmpfs(t, 0, "size=1m")
			args := []string{}
			for _, arg := range tc.args {
				args = append(args, strings.ReplaceAll(arg, "DIR", filepath.Join(parent, "new")))
			}
			if len(args) > 0 && args[0] != "serve" {
				args = append([]string{"--plain-http", r.Addr(), "--plain-http", locked.Addr(), "--plain-http", gone.Addr()}, args...)
			}
			cmd, stdout, stderr := process(t, args...)
			err := cmd.Run()
			if cmd.ProcessState.ExitCode() != tc.code || !strings.Contains(stderr.String(), tc.text) || stdout.Len() > 0 {
				t.Errorf("%v, want code %d and %q\n%s%s", err, tc.code, tc.text, stdout, stderr)
			}
			if left, err := os.ReadDir(parent); err != nil || len(left) > 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
	}
}

// TestSignals ends a pull in the middle of a layer.
func TestSignals(t *testing.T) {
	require.Root(t)
	for number, code := range map[syscall.Signal]int{syscall.SIGINT: 130, syscall.SIGTERM: 143} {
		t.Run(number.String(), func(t *testing.T) {
			r := rt.Start(t)
			ref, waits := stalled(r)
			dir := t.TempDir()
			cmd, stdout, stderr := process(t, "--plain-http", r.Addr(), ref, dir)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the pull hangs", waits)
			if err := cmd.Process.Signal(number); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); !errors.As(err, new(*exec.ExitError)) || cmd.ProcessState.ExitCode() != code {
				t.Errorf("ended with %v, want code %d", err, code)
			}
			if stdout.Len() > 0 || !strings.Contains(stderr.String(), "canceled") {
				t.Errorf("said %q and %q", stdout, stderr)
			}
			if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
	}
}
