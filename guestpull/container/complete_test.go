package container

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coffer-project/coffer/guestpull/container/origin"
	"github.com/coffer-project/coffer/integration/require"
	agentpb "github.com/coffer-project/coffer/proto/agent"
	"github.com/coffer-project/coffer/proto/oci"
)

// TestProcessOfTheImage: what the host leaves out comes from the verified image, and what it changes is told.
func TestProcessOfTheImage(t *testing.T) {
	require.Root(t)
	f := newFakes(t)
	must(t, os.Mkdir(filepath.Join(f.images.layer, "etc"), 0o755))
	must(t, os.WriteFile(filepath.Join(f.images.layer, "etc/passwd"), []byte("app:x:1000:1001::/:/bin/sh\n"), 0o600))
	f.images.config = ocispec.ImageConfig{
		User: "app", Entrypoint: []string{"/app"}, Cmd: []string{"serve"}, WorkingDir: "/srv/", Env: []string{"MODE=safe", "KEEP=1"},
	}
	req := f.request("c1")
	req.OCI.Process = &oci.Process{Env: []string{"MODE=evil", "OWN=secret"}, User: &oci.User{Username: "app"}}
	must(t, f.Create(t.Context(), req))
	raw, err := os.ReadFile(filepath.Join(f.Base, "c1/config.json"))
	must(t, err)
	var built specs.Spec
	must(t, json.Unmarshal(raw, &built))
	if p := built.Process; !slices.Equal(p.Args, []string{"/app", "serve"}) || p.Cwd != "/srv" || !slices.Equal(p.Env, []string{"KEEP=1", "MODE=evil", "OWN=secret"}) {
		t.Errorf("process is %q in %s with %q", p.Args, p.Cwd, p.Env)
	}
	parts, err := f.ProcessOrigin("c1")
	must(t, err)
	if parts.Args != origin.Image || parts.WorkingDir != origin.Image || parts.User != origin.Image ||
		!slices.Equal(parts.Names(origin.Altered), []string{"MODE"}) || !slices.Equal(parts.Names(origin.Restored), []string{"KEEP"}) {
		t.Errorf("origins: %+v", parts)
	}
	told := parts.Proto()
	if told.GetEnvAdded() != 1 || strings.Contains(told.String(), "secret") || strings.Contains(told.String(), "OWN") {
		t.Errorf("the host is told %v", told)
	}

	must(t, f.Start(t.Context(), "c1"))
	exec := &agentpb.ExecProcessRequest{ContainerId: "c1", ExecId: "e1", Process: &oci.Process{Args: []string{"sh"}}}
	must(t, f.Exec(t.Context(), exec))
	if p := f.runtime.process; p.Cwd != "/srv" || !slices.Equal(p.Env, []string{"MODE=safe", "KEEP=1"}) || !slices.Equal(p.Args, []string{"sh"}) {
		t.Errorf("exec is %q in %s with %q", p.Args, p.Cwd, p.Env)
	}
	exec.ExecId, exec.Process.Args = "e2", nil
	if err := f.Exec(t.Context(), exec); !errdefs.IsInvalidArgument(err) {
		t.Errorf("exec without arguments: %v", err)
	}
}

func TestProcessThatIsNone(t *testing.T) {
	require.Root(t)
	cases := map[string]ocispec.ImageConfig{
		"nothing to run":        {},
		"zero byte in an image": {Cmd: []string{"a\x00b"}},
		"endless variable":      {Cmd: []string{"a"}, Env: []string{"A=" + strings.Repeat("a", 1<<20)}},
		"endless list":          {Cmd: make([]string, 1<<14)},
	}
	for name, config := range cases {
		t.Run(name, func(t *testing.T) {
			f := newFakes(t)
			f.images.config = config
			req := f.request("c1")
			req.OCI.Process.Args = nil
			if err := f.Create(t.Context(), req); !errdefs.IsInvalidArgument(err) {
				t.Errorf("error: %v", err)
			}
			f.wantNothing(t, "c1")
		})
	}
}
