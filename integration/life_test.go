package integration

import (
	"crypto/sha256"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coffer-project/coffer/integration/harness"
)

// TestLife leads containers of an encrypted image through everything that CRI can ask of them, in one pod.
func TestLife(t *testing.T) {
	t.Parallel()
	node := sharedNode(t)
	l := newLab(t, node, "coffer", encryptedImage(t, node), func(config *runtime.PodSandboxConfig) {
		config.Hostname = "lively"
		config.DnsConfig.Options = []string{"ndots:3"}
		// The kubelet asks so for pods with the default settings.
		config.Linux.SecurityContext.NamespaceOptions = &runtime.NamespaceOption{Pid: runtime.NamespaceMode_CONTAINER}
	})
	before := settled(t, l)
	for name, test := range map[string]func(*testing.T, *lab){
		"exits":           lifeExits,
		"no program":      lifeNoProgram,
		"output":          lifeOutput,
		"stop":            lifeStop,
		"exec sync":       lifeExecSync,
		"exec terminal":   lifeExecTerminal,
		"attach terminal": lifeAttachTerminal,
		"attach stdin":    lifeAttachStdin,
		"process":         lifeProcess,
		"pod files":       lifePodFiles,
		"file systems":    lifeFileSystems,
		"volumes":         lifeVolumes,
		"security":        lifeSecurity,
		"devices":         lifeDevices,
		"network":         lifeNetwork,
		"stats":           lifeStats,
		"update":          lifeUpdate,
		"out of memory":   lifeOOM,
		"pause":           lifePause,
	} {
		t.Run(name, func(t *testing.T) { test(t, l) })
	}
	t.Run("leaks", func(t *testing.T) { lifeLeaks(t, l, before) })
	t.Run("nothing is left", func(t *testing.T) {
		l.remove(t)
		if err := node.Leftovers(); err != nil {
			t.Error(err)
		}
	})
}

// lifeExits runs several containers at a time and compares how they end.
func lifeExits(t *testing.T, l *lab) {
	cases := map[string]struct {
		script string
		code   int32
		reason string
	}{
		"success":    {"exit 0", 0, "Completed"},
		"status":     {"exit 42", 42, "Error"},
		"top status": {"exit 255", 255, "Error"},
		"signal":     {"sh -c 'kill -KILL $$'; exit $?", 137, "Error"},
		"no stdin":   {"cat; exit 7", 7, "Error"},
	}
	containers := map[string]*harness.Container{}
	for name, tc := range cases {
		containers[name] = l.start(t, nil, "/bin/sh", "-c", tc.script)
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			status := l.wait(t, containers[name])
			if status.ExitCode != tc.code || status.Reason != tc.reason {
				t.Errorf("got status %d (%s: %s), want %d (%s)", status.ExitCode, status.Reason, status.Message, tc.code, tc.reason)
			}
			// Nothing is said of start and finish: containerd notes the start when it has its answer, and a process may have
			// ended by then.
			if status.FinishedAt < status.CreatedAt || status.StartedAt < status.CreatedAt {
				t.Errorf("created at %d, started at %d, finished at %d", status.CreatedAt, status.StartedAt, status.FinishedAt)
			}
		})
	}
}

// lifeNoProgram starts what the image does not hold; the pod goes on.
func lifeNoProgram(t *testing.T, l *lab) {
	for name, tc := range map[string]struct{ program, want string }{
		"missing":        {"/bin/nothing", "no such file"},
		"not executable": {"/etc/passwd", "permission denied"},
		"not in path":    {"nothing", "not found"},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := l.tryCreate(t, nil, tc.program)
			if err == nil {
				err = c.Start(l.ctx(t))
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), tc.program) {
				t.Errorf("got %v, want an error that says %q of %s", err, tc.want, tc.program)
			}
		})
	}
}

// lifeOutput sends much through both streams at once.
func lifeOutput(t *testing.T, l *lab) {
	const size = 2 << 20
	c := l.start(t, nil, "/bin/sh", "-c", "yes 0123456789abcde | head -c 2097152; echo oops >&2; echo end")
	if status := l.wait(t, c); status.ExitCode != 0 {
		t.Fatalf("exit status %d", status.ExitCode)
	}
	stdout, stderr, err := c.Streams()
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Repeat("0123456789abcde\n", size/16) + "end\n"
	if sha256.Sum256([]byte(stdout)) != sha256.Sum256([]byte(want)) {
		t.Errorf("stdout has %d bytes, want %d", len(stdout), len(want))
	}
	if stderr != "oops\n" {
		t.Errorf("stderr = %.200q", stderr)
	}
}

// lifeStop stops containers that obey, that do not, and that listen to another signal.
func lifeStop(t *testing.T, l *lab) {
	const loop = "echo ready; while :; do sleep 0.1; done"
	for name, tc := range map[string]struct {
		script string
		signal runtime.Signal
		grace  int64
		code   int32
	}{
		"obeys":        {script: "trap 'exit 3' TERM; " + loop, grace: 120, code: 3},
		"ignores":      {script: "trap '' TERM; " + loop, grace: 1, code: 137},
		"at once":      {script: "trap 'exit 3' TERM; " + loop, grace: 0, code: 137},
		"other signal": {script: "trap 'exit 4' USR1; " + loop, signal: runtime.Signal_SIGNAL_SIGUSR1, grace: 120, code: 4},
	} {
		t.Run(name, func(t *testing.T) {
			c := l.start(t, func(config *runtime.ContainerConfig) { config.StopSignal = tc.signal }, "/bin/sh", "-c", tc.script)
			l.says(t, c, "ready")
			if err := c.Stop(l.ctx(t), tc.grace); err != nil {
				t.Fatal(err)
			}
			if status := l.wait(t, c); status.ExitCode != tc.code {
				t.Errorf("exit status %d (%s), want %d", status.ExitCode, status.Reason, tc.code)
			}
			if err := c.Stop(l.ctx(t), tc.grace); err != nil {
				t.Errorf("stop again: %v", err)
			}
		})
	}
}
