package container

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/guestpull/policy"
	"github.com/coffer-project/coffer/integration/require"
	agentpb "github.com/coffer-project/coffer/proto/agent"
	"github.com/coffer-project/coffer/proto/agentpolicy"
	"github.com/coffer-project/coffer/proto/oci"
)

// copyIn copies a file as the host does, and returns its path.
func (f *fakes) copyIn(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(f.sharedDir(), name)
	must(t, f.files.CopyFile(t.Context(), &agentpb.CopyFileRequest{
		Path: path, FileSize: int64(len(content)), FileMode: unix.S_IFREG | 0o600, Data: []byte(content),
	}))
	return path
}

func (f *fakes) mounting(id string, mounts map[string]string) *agentpb.CreateContainerRequest {
	req := f.request(id)
	for destination, name := range mounts {
		req.OCI.Mounts = append(req.OCI.Mounts, &oci.Mount{Destination: destination, Source: filepath.Join(f.sharedDir(), name), Type: "bind", Options: []string{"rbind", "ro"}})
	}
	return req
}

func wantFile(t *testing.T, path, want string) {
	t.Helper()
	if got, err := os.ReadFile(path); err != nil || string(got) != want {
		t.Errorf("%s holds %q, %v", path, got, err)
	}
}

func TestSealedFiles(t *testing.T) {
	require.Root(t)
	f := newFakes(t)
	f.secrets.values[sealedText] = hidden
	f.copyIn(t, "c1-creds/..1/password", sealedText+"\n")
	f.copyIn(t, "c1-creds/..1/name", "plain")
	f.copyIn(t, "c1-page/index", "plain")
	f.copyIn(t, "c1-one", sealedText)
	f.copyIn(t, "c2-creds/password", sealedText)
	ctx, out := heard(t)
	must(t, f.Create(ctx, f.mounting("c1", map[string]string{"/creds": "c1-creds", "/page": "c1-page", "/one": "c1-one"})))
	wantFile(t, filepath.Join(f.sharedDir(), "c1-creds/..1/password"), hidden)
	wantFile(t, filepath.Join(f.sharedDir(), "c2-creds/password"), sealedText)
	found := false
	for i := range 3 {
		// What the runtime mounts, not only what is copied.
		if got, err := os.ReadFile(filepath.Join(f.Base, "c1/mounts", fmt.Sprint(i))); err == nil {
			found = true
			if string(got) != hidden {
				t.Errorf("the file that is mounted by itself holds %q", got)
			}
		}
	}
	if !found {
		t.Error("no file is mounted")
	}
	// The policy was told what stands where, and of no secret.
	told := f.policy.told[len(f.policy.told)-1].SealedFiles
	if len(told) != 2 || strings.Contains(fmt.Sprintf("%+v", told), "battery") {
		t.Errorf("the policy was told %+v", told)
	}
	for _, one := range told {
		if one != (agentpolicy.SealedFile{MountPoint: "/creds", Path: "..1/password"}) && one != (agentpolicy.SealedFile{MountPoint: "/one", Path: "."}) {
			t.Errorf("the policy was told %+v", one)
		}
	}
	// An update of the mount is open; what comes to one that had no sealed files is not.
	f.secrets.values["sealed.new"] = hidden + "!"
	wantFile(t, f.copyIn(t, "c1-creds/..2/password", "sealed.new"), hidden+"!")
	wantFile(t, f.copyIn(t, "c1-page/index", "sealed.new"), "sealed.new")
	if log := out.String(); !strings.Contains(log, "sealed files opened") || strings.Contains(log, "battery") {
		t.Errorf("log: %s", log)
	}
}

func TestSealedFileFails(t *testing.T) {
	require.Root(t)
	for name, tc := range map[string]struct {
		content string
		refuse  string
		want    error
		words   []string
	}{
		"refused by the broker": {sealedText, "", errdefs.ErrPermissionDenied, []string{"container c1", "mount at /creds", `file "password"`, "policy denied"}},
		"refused by the policy": {sealedText, agentpolicy.StageContainer, errdefs.ErrPermissionDenied, nil},
		"too large":             {"sealed." + strings.Repeat("x", 1<<18), "", errdefs.ErrInvalidArgument, []string{"mount at /creds", "password"}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakes(t)
			f.policy.refuse = tc.refuse
			path := f.copyIn(t, "c1-creds/password", tc.content)
			err := f.Create(t.Context(), f.mounting("c1", map[string]string{"/creds": "c1-creds"}))
			if !errors.Is(err, tc.want) {
				t.Fatal(err)
			}
			for _, word := range tc.words {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("%q is not in %v", word, err)
				}
			}
			if asked := len(f.secrets.asked); tc.refuse != "" && asked > 0 || f.runtime.did("create") {
				t.Errorf("%d secrets were asked for, container made: %t", asked, f.runtime.did("create"))
			}
			wantFile(t, path, tc.content)
			f.wantNothing(t, "c1")
		})
	}
}

// TestSealedFileElsewhere is the attack that a policy stops: the host shows a secret to a reader that publishes it.
func TestSealedFileElsewhere(t *testing.T) {
	require.Root(t)
	const rego = `package agent_policy
CreateContainerRequest := true { not misplaced }
misplaced { input.coffer.sealed_files[_].mount_point != "/creds" }`
	engine, err := policy.NewMeasured(rego)
	must(t, err)
	f := newFakes(t)
	f.Policy = engine
	f.secrets.values[sealedText] = hidden
	for _, id := range []string{"c1", "c2"} {
		f.copyIn(t, id+"-v/x", sealedText)
	}
	if err := f.Create(t.Context(), f.mounting("c1", map[string]string{"/srv/www": "c1-v"})); !errdefs.IsPermissionDenied(err) || len(f.secrets.asked) > 0 {
		t.Errorf("asked for %q: %v", f.secrets.asked, err)
	}
	must(t, f.Create(t.Context(), f.mounting("c2", map[string]string{"/creds": "c2-v"})))
	// Where the owner gave no policy, no file is opened.
	f.images.config.Cmd = []string{"app"}
	f.Policy = policy.NewStrict()
	f.copyIn(t, "c3-hosts", sealedText)
	if err := f.Create(t.Context(), f.mounting("c3", map[string]string{"/etc/hosts": "c3-hosts"})); !errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), "sealed secret") {
		t.Error(err)
	}
}
