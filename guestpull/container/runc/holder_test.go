package runc_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/proto/oci"
)

// TestHolderIsOutOfReach has a container do its worst to the first process of the pid namespace that it shares: it looks for the
// guest's files through it, as containers that are made for debugging may, and sends it every signal.
func TestHolderIsOutOfReach(t *testing.T) {
	for name, mappings := range map[string][]*oci.LinuxIDMapping{
		"guest's users":  nil,
		"user namespace": {{HostID: 100000, Size: 65536}},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPod(t, true)
			for _, dir := range []string{p.base, filepath.Dir(p.base)} {
				must(t, os.Chmod(dir, 0o755))
			}
			marker := filepath.Join(p.base, "marker")
			must(t, os.WriteFile(marker, []byte("a file of the guest"), 0o644))
			req := p.request("c1", "sh", "-c", `cat /proc/1/root$1 /proc/1/root/../../../..$1 /proc/1/cwd/../../..$1; ls -A /proc/1/root/..; ls -A /proc/1/cwd/..
				for s in HUP QUIT ILL TRAP ABRT BUS FPE USR1 SEGV USR2 TERM SYS KILL; do kill -$s 1; done; grep CapEff /proc/1/status`, "sh", marker)
			req.SandboxPidns = true
			caps := []string{"CAP_SYS_PTRACE", "CAP_KILL", "CAP_DAC_OVERRIDE"}
			req.OCI.Process.Capabilities = &oci.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
			if mappings != nil {
				req.OCI.Linux.Namespaces = append(req.OCI.Linux.Namespaces, &oci.LinuxNamespace{Type: "user"})
				req.OCI.Linux.UIDMappings, req.OCI.Linux.GIDMappings = mappings, mappings
			}
			p.run(t, req)
			got := p.output(t, "c1", "", false)
			p.wantExit(t, "c1", "", 0)
			if !strings.HasPrefix(got, "CapEff:\t0000000000000000") || strings.Count(got, "\n") != 1 {
				t.Errorf("the container sees %.300q of the guest; stderr %q", got, p.output(t, "c1", "", true))
			}
			// The namespace is there for others.
			next := p.request("c2", "true")
			next.SandboxPidns, next.OCI.Linux = true, req.OCI.Linux
			p.run(t, next)
			p.wantExit(t, "c2", "", 0)
		})
	}
}
