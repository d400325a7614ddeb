package manager

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	sandboxapi "github.com/containerd/containerd/api/runtime/sandbox/v1"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestRecord(t *testing.T) {
	bundle := t.TempDir()
	if _, err := ReadRecord(bundle); !errdefs.IsNotFound(err) {
		t.Errorf("record of a foreign bundle: %v", err)
	}
	want := &Record{ConfigPath: "/etc/coffer/shim.toml", Address: "unix:///run/s/x", StateDir: "/run/coffer/x"}
	must(t, want.Write(bundle))
	got, err := ReadRecord(bundle)
	must(t, err)
	if *got != *want {
		t.Errorf("record is %+v, want %+v", got, want)
	}
	entries, err := os.ReadDir(bundle)
	must(t, err)
	if len(entries) != 1 {
		t.Errorf("the bundle holds %d files, want the record alone", len(entries))
	}
}

func TestPodOf(t *testing.T) {
	for name, test := range map[string]struct {
		spec    string
		want    string
		wantErr bool
	}{
		"sandbox API: no specification": {want: "id"},
		"no annotations":                {spec: `{}`, want: "id"},
		"pause container": {
			spec: `{"annotations":{"io.kubernetes.cri.container-type":"sandbox","io.kubernetes.cri.sandbox-id":"id"}}`, want: "id",
		},
		"container": {
			spec: `{"annotations":{"io.kubernetes.cri.container-type":"container","io.kubernetes.cri.sandbox-id":"pod"}}`, want: "pod",
		},
		"malformed": {spec: `{`, wantErr: true},
	} {
		t.Run(name, func(t *testing.T) {
			bundle := t.TempDir()
			if test.spec != "" {
				must(t, os.WriteFile(filepath.Join(bundle, "config.json"), []byte(test.spec), 0o600))
			}
			got, err := podOf(bundle, "id")
			if (err != nil) != test.wantErr || got != test.want {
				t.Errorf("pod is %q, %v; want %q", got, err, test.want)
			}
		})
	}
}

func TestConfigPath(t *testing.T) {
	for name, test := range map[string]struct {
		options *runtimeoptions.Options
		want    string
		wantErr error
	}{
		"no options": {want: "/etc/coffer/default.toml"},
		"path":       {options: &runtimeoptions.Options{ConfigPath: "/etc/coffer/a.toml"}, want: "/etc/coffer/a.toml"},
		"relative":   {options: &runtimeoptions.Options{ConfigPath: "a.toml"}, wantErr: errdefs.ErrInvalidArgument},
		"settings":   {options: &runtimeoptions.Options{ConfigBody: []byte("vcpus = 2\n")}, wantErr: errdefs.ErrInvalidArgument},
		"empty body": {options: &runtimeoptions.Options{ConfigBody: []byte("\n")}},
	} {
		t.Run(name, func(t *testing.T) {
			params := &bootapi.BootstrapParams{}
			if test.options != nil {
				must(t, params.AddExtension(test.options))
			}
			got, err := New("test", "test", "/etc/coffer/default.toml", nil).configPath(params)
			if !errors.Is(err, test.wantErr) || got != test.want {
				t.Errorf("path is %q, %v; want %q, %v", got, err, test.want, test.wantErr)
			}
		})
	}
}

// TestListen takes over a dead shim's socket and leaves a living one's alone.
func TestListen(t *testing.T) {
	address := "unix://" + filepath.Join(t.TempDir(), "s")
	first, err := listen(address)
	must(t, err)
	if _, err := listen(address); !errdefs.IsAlreadyExists(err) {
		t.Errorf("socket of a living shim: %v", err)
	}
	none := error(nil)
	first.release(&none)
	second, err := listen(address)
	must(t, err)
	failed := errors.New("the shim did not start")
	second.release(&failed)
	if _, err := os.Stat(strings.TrimPrefix(address, "unix://")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket of a shim that did not start is left: %v", err)
	}
}

func deleteContext(bundle string) context.Context {
	ctx := namespaces.WithNamespace(context.Background(), "test")
	return context.WithValue(ctx, shim.OptsKey{}, shim.Opts{BundlePath: bundle})
}

// TestDelete: the shim's own bundle is cleaned up, repeatedly; that of a container of another pod is left alone.
func TestDelete(t *testing.T) {
	bundle, foreign := t.TempDir(), t.TempDir()
	socketPath := filepath.Join(bundle, "socket")
	must(t, os.WriteFile(socketPath, nil, 0o600))
	must(t, (&Record{Address: "unix://" + socketPath, StateDir: "/run/coffer/x"}).Write(bundle))
	var reaped []string
	m := New("io.containerd.coffer.v2", "test", "", func(_ context.Context, dir string) error {
		reaped = append(reaped, dir)
		return nil
	})
	for range 2 {
		status, err := m.Stop(deleteContext(bundle), "pod")
		must(t, err)
		if status.ExitStatus != 137 || status.ExitedAt.IsZero() {
			t.Errorf("status is %+v", status)
		}
	}
	if _, err := os.Stat(socketPath); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
	_, err := m.Stop(deleteContext(foreign), "container")
	must(t, err)
	if !slices.Equal(reaped, []string{"/run/coffer/x", "/run/coffer/x"}) {
		t.Errorf("reaped %q", reaped)
	}
}

// dismissed is a pod's shim that notes when it is asked to end.
type dismissed struct {
	sandboxapi.TTRPCSandboxService
	ids chan string
}

func (d *dismissed) ShutdownSandbox(_ context.Context, r *sandboxapi.ShutdownSandboxRequest) (*sandboxapi.ShutdownSandboxResponse, error) {
	d.ids <- r.GetSandboxID()
	return &sandboxapi.ShutdownSandboxResponse{}, nil
}

// TestDeleteEndsLivingShim: containerd calls `delete` also for a shim that lives, when its client gave up early.
func TestDeleteEndsLivingShim(t *testing.T) {
	bundle := t.TempDir()
	path := filepath.Join(bundle, "socket")
	listener, err := net.Listen("unix", path)
	must(t, err)
	server, err := ttrpc.NewServer()
	must(t, err)
	shimmed := &dismissed{ids: make(chan string, 1)}
	sandboxapi.RegisterTTRPCSandboxService(server, shimmed)
	go server.Serve(t.Context(), listener) //nolint:errcheck // ends with the test
	t.Cleanup(func() { server.Close() })
	must(t, (&Record{Address: "unix://" + path}).Write(bundle))
	m := New("io.containerd.coffer.v2", "test", "", func(context.Context, string) error { return nil })
	if _, err := m.Stop(deleteContext(bundle), "pod"); err != nil {
		t.Fatal(err)
	}
	select {
	case id := <-shimmed.ids:
		if id != "pod" {
			t.Errorf("sandbox %q was to end", id)
		}
	default:
		t.Error("the shim was not asked to end")
	}
}

// TestDeleteRunsHooks runs, once, the hooks that a killed shim has left for the end of its container.
func TestDeleteRunsHooks(t *testing.T) {
	bundle := t.TempDir()
	noted := filepath.Join(bundle, "noted")
	raw, err := json.Marshal(specs.Spec{Hooks: &specs.Hooks{Poststop: []specs.Hook{
		{Path: "/bin/sh", Args: []string{"sh", "-c", "/bin/cat >> " + noted}},
	}}})
	must(t, err)
	must(t, os.WriteFile(filepath.Join(bundle, "config.json"), raw, 0o600))
	must(t, (&Record{Address: "unix:///none", Hooks: true}).Write(bundle))
	m := New("io.containerd.coffer.v2", "test", "", func(context.Context, string) error { return nil })
	for range 2 {
		_, err := m.Stop(deleteContext(bundle), "c1")
		must(t, err)
	}
	var state specs.State
	if raw, err = os.ReadFile(noted); err != nil || json.Unmarshal(raw, &state) != nil || state.ID != "c1" || state.Status != specs.StateStopped {
		t.Errorf("hooks were told %s, %v", raw, err)
	}
}

func TestDeleteReportsLeftovers(t *testing.T) {
	bundle, boom := t.TempDir(), errors.New("qemu does not die")
	must(t, (&Record{Address: "unix:///none", StateDir: "/run/coffer/x"}).Write(bundle))
	m := New("io.containerd.coffer.v2", "test", "", func(context.Context, string) error { return boom })
	if _, err := m.Stop(deleteContext(bundle), "pod"); !errors.Is(err, boom) {
		t.Errorf("error is %v, want %v", err, boom)
	}
}

func TestInfo(t *testing.T) {
	options, err := anypb.New(&runtimeoptions.Options{ConfigPath: "/etc/coffer/a.toml"})
	must(t, err)
	// containerd sends the type's name without a host.
	options.TypeUrl = "runtimeoptions.v1.Options"
	raw, err := proto.Marshal(options)
	must(t, err)
	for name, input := range map[string][]byte{"without options": nil, "with options": raw} {
		t.Run(name, func(t *testing.T) {
			info, err := New("io.containerd.coffer.v2", "1.2.3", "", nil).Info(t.Context(), bytes.NewReader(input))
			must(t, err)
			if info.GetName() != "io.containerd.coffer.v2" || info.GetVersion().GetVersion() != "1.2.3" {
				t.Errorf("info is %v", info)
			}
			var f features.Features
			must(t, json.Unmarshal(info.GetFeatures().GetValue(), &f))
			// What CRI asks for before it offers user namespaces and recursive read-only mounts to pods.
			if !slices.Contains(f.Linux.Namespaces, "user") || !*f.Linux.MountExtensions.IDMap.Enabled || !slices.Contains(f.MountOptions, "rro") {
				t.Errorf("features are %+v", f)
			}
			if !*f.Linux.Seccomp.Enabled || *f.Linux.Apparmor.Enabled {
				t.Errorf("features are %+v", f)
			}
		})
	}
}
