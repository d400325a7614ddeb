package cdi

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	oci "github.com/opencontainers/runtime-spec/specs-go"
)

func TestRequested(t *testing.T) {
	many := map[string]string{}
	for i := range maxDevices + 1 {
		many[fmt.Sprintf("cdi.k8s.io/vfio%d", i)] = fmt.Sprintf("nvidia.com/gpu=%d", i)
	}
	for name, tc := range map[string]struct {
		annotations map[string]string
		want        []string
		wantErr     error
	}{
		"none":               {map[string]string{"io.kubernetes.cri.container-type": "container"}, nil, nil},
		"one":                {map[string]string{"cdi.k8s.io/vfio0": "nvidia.com/gpu=0"}, []string{"nvidia.com/gpu=0"}, nil},
		"two":                {map[string]string{"cdi.k8s.io/vfio12": "nvidia.com/gpu=0", "cdi.k8s.io/vfio3": "nvidia.com/gpu=1"}, []string{"nvidia.com/gpu=0", "nvidia.com/gpu=1"}, nil},
		"another vendor":     {map[string]string{"cdi.k8s.io/vfio0": "vendor.example/nic=0"}, []string{"vendor.example/nic=0"}, nil},
		"twice":              {map[string]string{"cdi.k8s.io/vfio0": "nvidia.com/gpu=0", "cdi.k8s.io/vfio1": "nvidia.com/gpu=0"}, nil, errdefs.ErrInvalidArgument},
		"twice, padded":      {map[string]string{"cdi.k8s.io/vfio0": "nvidia.com/gpu=0", "cdi.k8s.io/vfio1": "nvidia.com/gpu=00"}, nil, errdefs.ErrInvalidArgument},
		"all":                {map[string]string{"cdi.k8s.io/vfio0": "nvidia.com/gpu=all"}, nil, errdefs.ErrInvalidArgument},
		"list":               {map[string]string{"cdi.k8s.io/vfio0": "nvidia.com/gpu=0,nvidia.com/gpu=1"}, nil, errdefs.ErrInvalidArgument},
		"negative":           {map[string]string{"cdi.k8s.io/vfio0": "nvidia.com/gpu=-1"}, nil, errdefs.ErrInvalidArgument},
		"path":               {map[string]string{"cdi.k8s.io/vfio0": "../../etc/x=0"}, nil, errdefs.ErrInvalidArgument},
		"nothing":            {map[string]string{"cdi.k8s.io/vfio0": ""}, nil, errdefs.ErrInvalidArgument},
		"another key":        {map[string]string{"cdi.k8s.io/device-plugin_x": "nvidia.com/gpu=0"}, nil, errdefs.ErrInvalidArgument},
		"key with a newline": {map[string]string{"cdi.k8s.io/vfio0\n": "nvidia.com/gpu=0"}, nil, errdefs.ErrInvalidArgument},
		"too many":           {many, nil, errdefs.ErrInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Requested(tc.annotations)
			if !errors.Is(err, tc.wantErr) || !slices.Equal(got, tc.want) {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}

const dir = "/run/kata-extensions/gpu"

// describe is a specification with one device that has these edits, in JSON.
func describe(edits string) string {
	return `{"cdiVersion": "0.7.0", "kind": "nvidia.com/gpu", "devices": [{"name": "0", "containerEdits": {` + edits + `}}]}`
}

func read(t *testing.T, rules Rules, files map[string]string) (*Registry, error) {
	t.Helper()
	at := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(at, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return Read(at, rules)
}

func TestRules(t *testing.T) {
	mount := func(from, to, options string) string {
		return fmt.Sprintf(`"mounts": [{"hostPath": %q, "containerPath": %q, "options": [%s]}]`, from, to, options)
	}
	hook := func(name, path, env string) string {
		return fmt.Sprintf(`"hooks": [{"hookName": %q, "path": %q, "args": ["x"], "env": [%s]}]`, name, path, env)
	}
	node := func(path, more string) string { return fmt.Sprintf(`"deviceNodes": [{"path": %q%s}]`, path, more) }
	for name, tc := range map[string]struct {
		edits   string
		dir     string
		allowed bool
	}{
		"library":                   {mount(dir+"/usr/lib/libcuda.so.1", "/usr/lib/libcuda.so.1", `"ro", "nosuid", "nodev", "rbind", "rprivate"`), dir, true},
		"socket":                    {mount("/run/nvidia-persistenced/socket", "/run/nvidia-persistenced/socket", `"ro", "noexec", "bind"`), dir, true},
		"library of the own image":  {mount("/usr/lib/libcuda.so.1", "/usr/lib/libcuda.so.1", `"ro"`), "/", true},
		"secret":                    {mount("/run/coffer/key", "/key", `"ro"`), dir, false},
		"own image, with extension": {mount("/usr/lib/libc.so", "/usr/lib/libc.so", `"ro"`), dir, false},
		"out of the extension":      {mount(dir+"/../../coffer", "/x", `"ro"`), dir, false},
		"beside the extension":      {mount(dir+"x/lib", "/x", `"ro"`), dir, false},
		"over proc":                 {mount(dir+"/proc", "/proc", `"ro"`), dir, false},
		"over the root":             {mount(dir+"/x", "/", `"ro"`), dir, false},
		"shared":                    {mount(dir+"/lib", "/x", `"rshared"`), dir, false},
		"memory file system":        {`"mounts": [{"hostPath": "tmpfs", "containerPath": "/x", "type": "tmpfs"}]`, dir, false},
		"hook":                      {hook("createContainer", dir+"/bin/nvidia-cdi-hook", `"NVIDIA_CTK_DEBUG=false"`), dir, true},
		"hook of the own image":     {hook("createContainer", "/usr/bin/nvidia-cdi-hook", ""), "/", true},
		"shell as hook":             {hook("createContainer", "/bin/sh", ""), "/", false},
		"runc as hook":              {hook("createContainer", "/usr/bin/runc", ""), dir, false},
		"hook before":               {hook("prestart", dir+"/bin/nvidia-cdi-hook", ""), dir, false},
		"hook inside":               {hook("startContainer", dir+"/bin/nvidia-cdi-hook", ""), dir, false},
		"hook with a library":       {hook("createContainer", dir+"/bin/nvidia-cdi-hook", `"LD_PRELOAD=/x"`), dir, false},
		"GPU":                       {node("/dev/nvidia0", ""), dir, true},
		"GPU's switches":            {node("/dev/nvidia-caps/nvidia-cap1", `, "hostPath": "/dev/nvidia-caps/nvidia-cap1"`), dir, true},
		"memory":                    {node("/dev/mem", ""), dir, false},
		"memory as GPU":             {node("/dev/nvidia0", `, "hostPath": "/dev/mem"`), dir, false},
		"disk":                      {node("/dev/nvidia0", `, "type": "b", "major": 254, "minor": 0`), dir, false},
		"variable":                  {`"env": ["NVIDIA_VISIBLE_DEVICES=void"]`, dir, true},
		"loader's variable":         {`"env": ["LD_PRELOAD=/x"]`, dir, false},
		"groups":                    {`"additionalGids": [5]`, dir, false},
		"caches":                    {`"intelRdt": {"closID": "x"}`, dir, false},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := read(t, ForDriver(tc.dir), map[string]string{"nvidia.json": describe(tc.edits)})
			if tc.allowed != (err == nil) || err != nil && !errdefs.IsFailedPrecondition(err) {
				t.Fatalf("got %v", err)
			}
			if err == nil && !slices.Equal(r.Names(), []string{"nvidia.com/gpu=0"}) {
				t.Errorf("devices %q", r.Names())
			}
			// The same for all devices of a specification.
			whole := `{"cdiVersion": "0.7.0", "kind": "nvidia.com/gpu", "containerEdits": {` + tc.edits + `}, "devices": [{"name": "0", "containerEdits": {"env": ["NVIDIA_X=1"]}}]}`
			if _, err := read(t, ForDriver(tc.dir), map[string]string{"nvidia.json": whole}); tc.allowed != (err == nil) {
				t.Errorf("for all devices: %v", err)
			}
		})
	}
}

func TestRead(t *testing.T) {
	good := describe(`"env": ["NVIDIA_X=1"]`)
	crowd := map[string]string{}
	for i := range maxFiles + 1 {
		crowd[fmt.Sprintf("%d.txt", i)] = ""
	}
	for name, tc := range map[string]struct {
		files   map[string]string
		wantErr error
	}{
		"one":        {map[string]string{"nvidia.yaml": good, "README": "x"}, nil},
		"none":       {nil, nil},
		"same twice": {map[string]string{"a.json": good, "b.json": good}, errdefs.ErrFailedPrecondition},
		"garbage":    {map[string]string{"a.json": "{"}, errdefs.ErrFailedPrecondition},
		"empty":      {map[string]string{"a.yaml": ""}, errdefs.ErrFailedPrecondition},
		"too large":  {map[string]string{"a.yaml": strings.Repeat("# x\n", maxFile/4+1)}, errdefs.ErrFailedPrecondition},
		"too many":   {crowd, errdefs.ErrFailedPrecondition},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := read(t, ForDriver(dir), tc.files); !errors.Is(err, tc.wantErr) {
				t.Errorf("got %v, want %v", err, tc.wantErr)
			}
		})
	}
	if r, err := Read(filepath.Join(t.TempDir(), "none"), Rules{}); err != nil || len(r.Names()) > 0 {
		t.Errorf("no folder: %v", err)
	}
}

func TestInject(t *testing.T) {
	text := `{"cdiVersion": "0.7.0", "kind": "nvidia.com/gpu",
	  "containerEdits": {"env": ["NVIDIA_VISIBLE_DEVICES=void"], "hooks": [{"hookName": "createContainer", "path": "/run/kata-extensions/gpu/bin/nvidia-cdi-hook"}]},
	  "devices": [
	    {"name": "0", "containerEdits": {"deviceNodes": [{"path": "/dev/nvidia0", "type": "c", "major": 195, "minor": 0}]}},
	    {"name": "1", "containerEdits": {"deviceNodes": [{"path": "/dev/nvidia1", "type": "c", "major": 195, "minor": 1}]}}]}`
	r, err := read(t, ForDriver(dir), map[string]string{"nvidia.json": text})
	if err != nil {
		t.Fatal(err)
	}
	s := &oci.Spec{Process: &oci.Process{Env: []string{"A=b"}}, Linux: &oci.Linux{}}
	if err := r.Inject(s, []string{"nvidia.com/gpu=0", "nvidia.com/gpu=2"}); !errors.Is(err, errdefs.ErrNotFound) || len(s.Process.Env) != 1 {
		t.Errorf("a device that is not there: %v, %+v", err, s.Process.Env)
	}
	if err := r.Inject(s, []string{"nvidia.com/gpu=0", "nvidia.com/gpu=1"}); err != nil {
		t.Fatal(err)
	}
	if len(s.Linux.Devices) != 2 || len(s.Linux.Resources.Devices) != 2 || len(s.Hooks.CreateContainer) != 1 || len(s.Process.Env) != 2 {
		t.Errorf("got %+v %+v %+v", s.Linux, s.Hooks, s.Process.Env)
	}
}

func FuzzRequested(f *testing.F) {
	f.Add("cdi.k8s.io/vfio0", "nvidia.com/gpu=0")
	f.Add("cdi.k8s.io/vfio01", "nvidia.com/gpu=all")
	f.Fuzz(func(t *testing.T, key, value string) {
		names, err := Requested(map[string]string{key: value})
		if err != nil && !errdefs.IsInvalidArgument(err) {
			t.Errorf("class of %v", err)
		}
		for _, name := range names {
			if name != value || strings.ContainsAny(name, " ,\n\x00") || strings.Contains(name, "..=") {
				t.Errorf("took %q", name)
			}
		}
	})
}

func FuzzSpecification(f *testing.F) {
	f.Add([]byte(describe(`"env": ["NVIDIA_X=1"]`)))
	f.Add([]byte(describe(`"mounts": [{"hostPath": "/run/kata-extensions/gpu/x", "containerPath": "/x"}]`)))
	f.Fuzz(func(t *testing.T, data []byte) {
		file := filepath.Join(t.TempDir(), "x.yaml")
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := Read(filepath.Dir(file), ForDriver(dir))
		if err != nil {
			if !errdefs.IsFailedPrecondition(err) {
				t.Errorf("class of %v", err)
			}
			return
		}
		s := &oci.Spec{Process: &oci.Process{}, Linux: &oci.Linux{}}
		_ = r.Inject(s, r.Names()) // device nodes are not there
		for _, m := range s.Mounts {
			if !strings.HasPrefix(m.Source, dir+"/") && !strings.HasPrefix(m.Source, "/dev/") && !strings.Contains(m.Source, "/run/nvidia-") {
				t.Errorf("mount of %q", m.Source)
			}
		}
		if s.Hooks != nil && len(s.Hooks.CreateContainer) > 0 && !strings.HasPrefix(s.Hooks.CreateContainer[0].Path, dir+"/") {
			t.Errorf("hook %q", s.Hooks.CreateContainer[0].Path)
		}
	})
}
