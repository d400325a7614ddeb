package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	rt "github.com/coffer-project/coffer/integration/registrytest"
	"github.com/coffer-project/coffer/proto/initdata"
)

func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestPolicyGenerate goes from a manifest and a registry to a document, and asks its policy about recorded requests.
func TestPolicyGenerate(t *testing.T) {
	r := rt.Start(t)
	image := func(arch, program string) *rt.Image {
		return rt.NewImage([]rt.Layer{rt.NewLayer(rt.Gzip, rt.Entry{Name: "f", Body: arch})}, func(c *ocispec.Image) {
			c.Architecture, c.Config.Cmd = arch, []string{program}
		}, nil)
	}
	index := rt.NewIndex(map[string]*rt.Image{"linux/amd64": image("amd64", "/intel"), "linux/arm64": image("arm64", "/arm")})
	ref := r.Put("app", "1", index)
	manifest := "kind: Pod\nspec:\n  containers:\n  - {name: app, image: \"" + ref + "\", livenessProbe: {exec: {command: [/probe]}}}\n"

	out, err := runCommand(t, manifest, policyCommand(), "policy", "generate", "--platform", "linux/arm64", "-")
	if err != nil || !strings.Contains(out, "package agent_policy") || !strings.Contains(out, `"/arm"`) || strings.Contains(out, "/intel") ||
		!strings.Contains(out, index.Desc.Digest.String()) {
		t.Fatalf("generate: %v\n%.2000s", err, out)
	}
	document := write(t, "initdata.toml", "version = \"0.1.0\"\nalgorithm = \"sha384\"\n[data]\n\"coffer.toml\" = '''\n[policy]\ndefault = \"development\"\n[attestation]\ntees = [\"snp\", \"tdx\"]\n'''\n\"aa.toml\" = ''\n")
	made := filepath.Join(t.TempDir(), "made")
	if _, err := runCommand(t, "", policyCommand(), "policy", "generate", "--initdata", document, "--format", "annotation", "--out", made, write(t, "pod.yaml", manifest)); err != nil {
		t.Fatal(err)
	}
	if out, err = runCommand(t, "", initdataCommand(), "initdata", "inspect", made); err != nil || !strings.Contains(out, "policy:    "+initdata.KeyPolicy) || !strings.Contains(out, "entry:     aa.toml") ||
		!strings.Contains(out, "guests:    snp, tdx only\n") {
		t.Fatalf("inspect: %v\n%s", err, out)
	}

	request := func(stage, name, arg string) string {
		return `{"kind": "CreateContainerRequest", "request": {"container_id": "c1", "storages": [], "devices": [], "sandbox_pidns": false,
			"OCI": {"Root": {"Path": "/r"}, "Mounts": [], "Linux": {"Devices": [], "Sysctl": {}}, "Process": {"User": {"UID": 0, "GID": 0, "Username": ""}},
			"Annotations": {"io.kubernetes.cri.container-name": "` + name + `"}},
			"coffer": {"method": "CreateContainer", "stage": "` + stage + `", "sandbox": false, "running": [],
			"image": {"reference": "` + ref + `", "requested": "` + index.Desc.Digest.String() + `", "digest": "", "target": "` + index.Desc.Digest.String() + `"},
			"process": {"args": ["` + arg + `"], "cwd": "/", "uid": 0, "gid": 0, "env": [], "user_origin": "image"}}}}`
	}
	exec := `{"kind": "ExecProcessRequest", "request": {"container_id": "c1", "coffer": {"method": "ExecProcess"},
		"process": {"Args": ["/probe"], "Cwd": "/", "Env": [], "User": {"UID": 0, "GID": 0, "Username": ""}}}`
	for name, tc := range map[string]struct {
		requests string
		want     []string
		wantErr  error
	}{
		"as it should be": {
			request("request", "app", "/intel") + request("container", "app", "/intel") + exec + "}",
			[]string{"allowed  CreateContainerRequest\nallowed  CreateContainerRequest\nallowed  ExecProcessRequest\n"}, nil,
		},
		"tried only": {
			"[" + request("request", "app", "/intel") + "," + exec + "}]",
			[]string{"allowed  CreateContainerRequest", "denied   ExecProcessRequest: "}, errdefs.ErrPermissionDenied,
		},
		"a refusal that is wanted": {exec + `, "allowed": false, "description": "too early"}`, []string{"denied   ExecProcessRequest (too early): "}, nil},
		"other program":            {request("container", "app", "/bin/sh"), []string{"denied   CreateContainerRequest: command and arguments are others"}, errdefs.ErrPermissionDenied},
		"no rule":                  {`{"kind": "SetPolicyRequest", "request": {}}`, []string{"the policy has no rule SetPolicyRequest"}, errdefs.ErrPermissionDenied},
		"nothing":                  {"", nil, errdefs.ErrInvalidArgument},
		"no kind":                  {`{"request": {}}`, nil, errdefs.ErrInvalidArgument},
		"no JSON":                  {"[{", nil, errdefs.ErrInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := runCommand(t, tc.requests, policyCommand(), "policy", "check", "--policy", made, "-")
			if !errors.Is(err, tc.wantErr) {
				t.Errorf("error: %v", err)
			}
			for _, want := range tc.want {
				if !strings.Contains(out, want) {
					t.Errorf("%q lacks %q", out, want)
				}
			}
		})
	}
}

func TestPolicyArguments(t *testing.T) {
	r := rt.Start(t)
	ref := r.Put("app", "1", rt.NewImage([]rt.Layer{rt.NewLayer(rt.Gzip, rt.Entry{Name: "f"})}, nil, nil))
	pod := write(t, "pod.yaml", "kind: Pod\nspec: {containers: [{name: app, image: \""+ref+"\"}]}\n")
	for name, tc := range map[string]struct {
		args []string
		want error
	}{
		"no manifest":         {[]string{"generate"}, errdefs.ErrInvalidArgument},
		"format without":      {[]string{"generate", "--format", "toml", pod}, errdefs.ErrInvalidArgument},
		"manifest not there":  {[]string{"generate", "/nonexistent"}, os.ErrNotExist},
		"other platform":      {[]string{"generate", "--platform", "linux/", pod}, errdefs.ErrInvalidArgument},
		"no name":             {[]string{"generate", write(t, "odd.yaml", "kind: Pod\nspec: {containers: [{name: a, image: \"A B\"}]}\n")}, errdefs.ErrInvalidArgument},
		"document is none":    {[]string{"generate", "--initdata", pod, pod}, errdefs.ErrInvalidArgument},
		"policy is none":      {[]string{"check", "--policy", pod, pod}, errdefs.ErrInvalidArgument},
		"document without":    {[]string{"check", "--policy", write(t, "empty.toml", "version = \"0.1.0\"\nalgorithm = \"sha384\"\n"), pod}, errdefs.ErrNotFound},
		"requests not there":  {[]string{"check", "--policy", write(t, "p.rego", "package agent_policy\nX := true"), "/nonexistent"}, os.ErrNotExist},
		"prints are no fault": {[]string{"check", "--print", "--policy", write(t, "p.rego", "package agent_policy\nX if print(1)"), write(t, "r", `{"kind": "X", "request": {}}`)}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := runCommand(t, "", policyCommand(), append([]string{"policy"}, tc.args...)...); !errors.Is(err, tc.want) {
				t.Errorf("error: %v", err)
			}
		})
	}
}
