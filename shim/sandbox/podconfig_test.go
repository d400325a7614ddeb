package sandbox

import (
	"errors"
	"maps"
	"slices"
	"testing"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func pod(options *cri.NamespaceOption) *cri.PodSandboxConfig {
	return &cri.PodSandboxConfig{Linux: &cri.LinuxPodSandboxConfig{
		SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: options},
	}}
}

func users(mode cri.NamespaceMode, mappings ...*cri.IDMapping) *cri.UserNamespace {
	return &cri.UserNamespace{Mode: mode, Uids: mappings, Gids: mappings}
}

func mapping(container, host uint32) *cri.IDMapping {
	return &cri.IDMapping{ContainerId: container, HostId: host, Length: 65536}
}

func TestCheckPodConfig(t *testing.T) {
	node := cri.NamespaceMode_NODE
	for name, test := range map[string]struct {
		config     *cri.PodSandboxConfig
		wantErr    error
		sharesPIDs bool
	}{
		"own sysctl": {config: &cri.PodSandboxConfig{Linux: &cri.LinuxPodSandboxConfig{
			Sysctls: map[string]string{"kernel.shm_rmid_forced": "1", "fs.mqueue.msg_max": "100", "net.ipv4.ip_local_port_range": "1024 65535"},
		}}, sharesPIDs: true},
		"node's sysctl": {config: &cri.PodSandboxConfig{Linux: &cri.LinuxPodSandboxConfig{
			Sysctls: map[string]string{"vm.overcommit_memory": "1"},
		}}, wantErr: errdefs.ErrInvalidArgument, sharesPIDs: true},
		"empty":          {config: &cri.PodSandboxConfig{}, sharesPIDs: true},
		"own processes":  {config: pod(&cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER})},
		"shared by pod":  {config: pod(&cri.NamespaceOption{}), sharesPIDs: true},
		"host network":   {config: pod(&cri.NamespaceOption{Network: node}), wantErr: errdefs.ErrInvalidArgument},
		"host processes": {config: pod(&cri.NamespaceOption{Pid: node}), wantErr: errdefs.ErrInvalidArgument},
		"host IPC":       {config: pod(&cri.NamespaceOption{Ipc: node}), wantErr: errdefs.ErrInvalidArgument},
		"user namespace": {config: pod(&cri.NamespaceOption{UsernsOptions: users(cri.NamespaceMode_POD, mapping(0, 1000))}), sharesPIDs: true},
		"no mapping":     {config: pod(&cri.NamespaceOption{UsernsOptions: users(cri.NamespaceMode_POD)}), wantErr: errdefs.ErrInvalidArgument},
		"two mappings": {
			config:  pod(&cri.NamespaceOption{UsernsOptions: users(cri.NamespaceMode_POD, mapping(0, 1000), mapping(0, 2000))}),
			wantErr: errdefs.ErrInvalidArgument,
		},
		"no root":        {config: pod(&cri.NamespaceOption{UsernsOptions: users(cri.NamespaceMode_POD, mapping(1, 1000))}), wantErr: errdefs.ErrInvalidArgument},
		"node's root":    {config: pod(&cri.NamespaceOption{UsernsOptions: users(cri.NamespaceMode_POD, mapping(0, 0))}), wantErr: errdefs.ErrInvalidArgument},
		"own users each": {config: pod(&cri.NamespaceOption{UsernsOptions: users(cri.NamespaceMode_CONTAINER)}), wantErr: errdefs.ErrInvalidArgument},
		"users of other": {config: pod(&cri.NamespaceOption{UsernsOptions: users(cri.NamespaceMode_TARGET)}), wantErr: errdefs.ErrInvalidArgument},
		"host users":     {config: pod(&cri.NamespaceOption{UsernsOptions: &cri.UserNamespace{Mode: node}}), sharesPIDs: true},
	} {
		t.Run(name, func(t *testing.T) {
			err := checkPodConfig(test.config)
			if !errors.Is(err, test.wantErr) {
				t.Errorf("error is %v, want %v", err, test.wantErr)
			}
			if err == nil && sharesPIDs(test.config) != test.sharesPIDs {
				t.Errorf("shares processes: %t", !test.sharesPIDs)
			}
		})
	}
}

// TestOpenSysctls: only the kubelet's pods get more than they ask for, and never something else.
func TestOpenSysctls(t *testing.T) {
	const ports, ping = "net.ipv4.ip_unprivileged_port_start", "net.ipv4.ping_group_range"
	named := &cri.PodSandboxMetadata{Name: "web"}
	for name, test := range map[string]struct {
		config *cri.PodSandboxConfig
		want   map[string]string
	}{
		"no pod of a kubelet": {config: &cri.PodSandboxConfig{}},
		"asks for nothing":    {config: &cri.PodSandboxConfig{Metadata: named}, want: map[string]string{ports: "0", ping: "0 2147483647"}},
		"asks for its own": {
			config: &cri.PodSandboxConfig{Metadata: named, Linux: &cri.LinuxPodSandboxConfig{Sysctls: map[string]string{ports: "1024", "kernel.msgmax": "1"}}},
			want:   map[string]string{ports: "1024", ping: "0 2147483647", "kernel.msgmax": "1"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			openSysctls(test.config)
			if got := test.config.GetLinux().GetSysctls(); !maps.Equal(got, test.want) {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}

func TestParsePodConfig(t *testing.T) {
	good, err := anypb.New(&cri.PodSandboxConfig{Hostname: "web"})
	if err != nil {
		t.Fatal(err)
	}
	// containerd's type registry leaves the host out of the type's URL.
	bare := &anypb.Any{TypeUrl: "runtime.v1.PodSandboxConfig", Value: good.GetValue()}
	other, err := anypb.New(&emptypb.Empty{})
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		options  *anypb.Any
		hostname string
		wantErr  error
	}{
		"none":      {},
		"good":      {options: good, hostname: "web"},
		"bare":      {options: bare, hostname: "web"},
		"other":     {options: other, wantErr: errdefs.ErrInvalidArgument},
		"malformed": {options: &anypb.Any{TypeUrl: good.GetTypeUrl(), Value: []byte{0xff}}, wantErr: errdefs.ErrInvalidArgument},
		"too large": {
			options: &anypb.Any{TypeUrl: good.GetTypeUrl(), Value: make([]byte, maxPodConfigBytes+1)}, wantErr: errdefs.ErrInvalidArgument,
		},
	} {
		t.Run(name, func(t *testing.T) {
			config, err := ParsePodConfig(test.options)
			if !errors.Is(err, test.wantErr) {
				t.Fatalf("error is %v, want %v", err, test.wantErr)
			}
			if err == nil && config.GetHostname() != test.hostname {
				t.Errorf("hostname is %q, want %q", config.GetHostname(), test.hostname)
			}
		})
	}
}

func TestResolvConf(t *testing.T) {
	text := "# comment\nsearch a.example b.example\nnameserver 10.0.0.10\nnameserver\t10.0.0.11\noptions ndots:5 edns0\nunknown x\nnameserver\n"
	dns := ParseResolvConf(text)
	want := []string{"search a.example b.example", "nameserver 10.0.0.10", "nameserver 10.0.0.11", "options ndots:5 edns0"}
	if got := resolvLines(dns); !slices.Equal(got, want) {
		t.Errorf("lines are %q, want %q", got, want)
	}
	if got := resolvLines(ParseResolvConf("")); len(got) != 0 {
		t.Errorf("no settings became %q", got)
	}
}

func FuzzParseResolvConf(f *testing.F) {
	f.Add("search a\nnameserver 1.2.3.4\noptions x\n")
	f.Fuzz(func(t *testing.T, text string) {
		lines := resolvLines(ParseResolvConf(text))
		if got := resolvLines(ParseResolvConf(joinLines(lines))); !slices.Equal(got, lines) {
			t.Errorf("%q read again is %q", lines, got)
		}
	})
}

func joinLines(lines []string) string {
	text := ""
	for _, line := range lines {
		text += line + "\n"
	}
	return text
}
