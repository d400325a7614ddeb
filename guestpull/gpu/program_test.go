package gpu

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/guestpull/container/reap"
)

func TestProgram(t *testing.T) {
	p := &programs{start: reap.New().Start, heard: newHearing()}
	long := strings.Repeat("x", 3*maxLine)
	for name, tc := range map[string]struct {
		limit   time.Duration
		script  string
		want    string // the error has it
		wantErr error
	}{
		"good":           {time.Minute, "echo fine", "", nil},
		"status":         {time.Minute, "echo first; echo; echo last; exit 7", `sh ended with status 7: "last"`, errdefs.ErrUnavailable},
		"silent":         {time.Minute, "exit 7", "sh ended with status 7 and said nothing", errdefs.ErrUnavailable},
		"signal":         {time.Minute, "kill -9 $$", "sh was ended by signal 9", errdefs.ErrUnavailable},
		"endless line":   {time.Minute, "echo " + long + "; exit 1", strings.Repeat("x", maxLine) + `"`, errdefs.ErrUnavailable},
		"control":        {time.Minute, `printf 'a\033[31m\377\n'; exit 1`, `"a\x1b[31m?"`, errdefs.ErrUnavailable},
		"too long":       {100 * time.Millisecond, "while :; do sleep 60; done", "sh has not ended within 100ms", context.DeadlineExceeded},
		"no environment": {time.Minute, `test "$COFFER_TEST" = "" && test "$PWD" = /`, "", nil},
		"leaves a child": {time.Minute, "sleep 60 & exit 0", "", nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("COFFER_TEST", "secret")
			err := p.run(t.Context(), tc.limit, "/bin/sh", "-c", tc.script)
			if !errors.Is(err, tc.wantErr) || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v", err)
			}
		})
	}
	if err := p.run(t.Context(), time.Minute, "/not/there"); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("no program: %v", err)
	}
}

// TestProgramGroup shows that a program that takes too long ends with all that it has started.
func TestProgramGroup(t *testing.T) {
	p := &programs{start: reap.New().Start, heard: newHearing()}
	fifo := filepath.Join(t.TempDir(), "fifo")
	must(t, unix.Mkfifo(fifo, 0o600))
	heard, forget := p.heard.expect("started")
	defer forget()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-heard
		cancel()
	}()
	// The child holds the fifo open for writing for as long as it lives.
	if err := p.run(ctx, time.Minute, "/bin/sh", "-c", "{ echo started; sleep 60; } 3<>"+fifo+" & wait"); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	f, err := os.OpenFile(fifo, os.O_RDONLY|unix.O_NONBLOCK, 0)
	must(t, err)
	defer f.Close()
	must(t, f.SetReadDeadline(time.Now().Add(10*time.Second)))
	if n, err := f.Read(make([]byte, 1)); n != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("somebody holds the fifo still: %v", err)
	}
}

func TestHealth(t *testing.T) {
	h, heard := newHealth(), newHearing()
	marker, forget := heard.expect(persistencedReady)
	defer forget()
	for _, record := range []string{
		"4,1,0,-;NVRM: Xid (PCI:0000:01:00): 79, pid=1, GPU has fallen off the bus.",
		"4,2,0,-;NVRM: Xid (PCI:0000:01:00): 79, pid=1, again",
		"4,3,0,-;NVRM: Xid (PCI:0000:02:00): 63, Row remapping",
		"4,4,0,-;NVRM: Xid (PCI:{}\"): 79, forged",
		"12,5,0,-;Local RPC services initialized",
	} {
		h.hear(t.Context(), record, heard)
	}
	select {
	case <-marker:
	default:
		t.Error("the marker was not heard")
	}
	figures := func() map[string]string {
		out := map[string]string{}
		h.figures(func(name, value string) { out[name] = value })
		return out
	}
	if got := figures(); len(got) > 0 {
		t.Errorf("before it is known what there is: %v", got)
	}
	h.set(Topology{Mode: ModeGPU, GPUs: 2}, nil)
	got := figures()
	for name, want := range map[string]string{
		"coffer_guest_gpus": "2", "coffer_guest_gpus_usable": "1", "coffer_guest_gpu_daemons_ended": "0",
		`coffer_guest_gpu_xid_errors{gpu="0000:01:00",xid="79"}`: "2", `coffer_guest_gpu_xid_errors{gpu="0000:02:00",xid="63"}`: "1",
	} {
		if got[name] != want {
			t.Errorf("%s is %q, want %q", name, got[name], want)
		}
	}
	if len(got) != 5 {
		t.Errorf("figures %v", got)
	}
	h.set(Topology{Mode: ModeGPU, GPUs: 2}, errdefs.ErrUnavailable)
	if got := figures()["coffer_guest_gpus_usable"]; got != "0" {
		t.Errorf("after a failure: usable %q", got)
	}
}

func TestHealthOfDaemons(t *testing.T) {
	p, h := &programs{start: reap.New().Start, heard: newHearing()}, newHealth()
	r, err := p.launch(t.Context(), "/bin/sh", "-c", "echo out of memory; exit 1")
	must(t, err)
	if err := <-h.watch(t.Context(), r); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
	if err := h.daemons(); err == nil || !strings.Contains(err.Error(), "out of memory") {
		t.Errorf("got %v", err)
	}
}
