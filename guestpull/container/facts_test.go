package container

import (
	"errors"
	"os"
	"slices"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/integration/require"
	"github.com/coffer-project/coffer/proto/agentpolicy"
	"github.com/coffer-project/coffer/proto/imagepolicy"
)

// TestPolicyStages: the policy is asked before anything is done, and again when everything is known and nothing runs.
func TestPolicyStages(t *testing.T) {
	require.Root(t)
	f := newFakes(t)
	f.images.config.Cmd = []string{"/app"}
	req := f.request("c1")
	req.OCI.Process.Args = nil
	req.OCI.Process.Env = []string{"OWN=1"}
	if err := f.Create(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	if len(f.policy.told) != 2 {
		t.Fatalf("asked %d times", len(f.policy.told))
	}
	first, second := f.policy.told[0], f.policy.told[1]
	if first.Stage != agentpolicy.StageRequest || first.Process != nil || first.Image.Digest != "" || first.Image.Reference != "registry.test/app:1" {
		t.Errorf("before: %+v", first)
	}
	if second.Stage != agentpolicy.StageContainer || second.Image.Digest != someDigest || second.Image.Config == nil ||
		!slices.Equal(second.Process.Args, second.Image.Config.Cmd) || second.Process.ArgsOrigin != "image" {
		t.Errorf("after: %+v", second)
	}
	if i := slices.IndexFunc(second.Process.Env, func(v agentpolicy.Variable) bool { return v.Name == "OWN" }); i < 0 || second.Process.Env[i].Origin != "host" {
		t.Errorf("variables: %+v", second.Process.Env)
	}
}

// TestPolicySeesSigners: what the image security policy has found reaches the policy of requests.
func TestPolicySeesSigners(t *testing.T) {
	for name, test := range map[string]struct {
		accepted []imagepolicy.Acceptance
		want     []string // nil: no signature was asked for
	}{
		"no policy": {nil, nil},
		"any image": {[]imagepolicy.Acceptance{{Rule: "insecureAcceptAnything"}}, nil},
		"signed": {
			[]imagepolicy.Acceptance{{Rule: "insecureAcceptAnything"}, {Rule: "sigstoreSigned", KeyID: "sha256:aa", KeyURI: "kbs:///a/b/c"}, {Rule: "sigstoreSigned", KeyID: "sha256:bb"}},
			[]string{"sha256:aa", "kbs:///a/b/c", "sha256:bb"},
		},
		"OpenPGP": {[]imagepolicy.Acceptance{{Rule: "signedBy", KeyID: "ABCD", KeyURI: "kbs:///a/b/c"}}, []string{"ABCD", "kbs:///a/b/c"}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakes(t)
			f.images.judged = imagepolicy.Verdict{Scope: "x", Accepted: test.accepted}
			if err := f.Create(t.Context(), f.request("c1")); err != nil {
				t.Fatal(err)
			}
			if before := f.policy.told[0].Image.Signature; before != nil {
				t.Errorf("before the pull: %+v", before)
			}
			got := f.policy.told[1].Image.Signature
			if (got != nil) != (test.want != nil) || (got != nil && (!got.Verified || !slices.Equal(got.Signers, test.want))) {
				t.Errorf("got %+v, want %v", got, test.want)
			}
		})
	}
}

func TestPolicyRefuses(t *testing.T) {
	require.Root(t)
	for _, stage := range []string{agentpolicy.StageRequest, agentpolicy.StageContainer} {
		t.Run(stage, func(t *testing.T) {
			f := newFakes(t)
			f.policy.refuse = stage
			if err := f.Create(t.Context(), f.request("c1")); !errors.Is(err, errdefs.ErrPermissionDenied) {
				t.Fatalf("error: %v", err)
			}
			if calls := f.runtime.calls; len(calls) > 0 {
				t.Errorf("the runtime was called: %v", calls)
			}
			if pulled := f.images.last.Reference != ""; pulled != (stage == agentpolicy.StageContainer) || len(f.images.held) > 0 {
				t.Errorf("image pulled: %t, held: %v", pulled, f.images.held)
			}
			if _, err := os.Stat(f.rootfs("c1")); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("something is left: %v", err)
			}
			if _, err := f.get("c1"); !errors.Is(err, errdefs.ErrNotFound) {
				t.Errorf("the container is there: %v", err)
			}
		})
	}
}
