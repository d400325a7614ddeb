package agentpolicy

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/proto"

	agentpb "github.com/coffer-project/coffer/proto/agent"
	"github.com/coffer-project/coffer/proto/oci"
	typespb "github.com/coffer-project/coffer/proto/types"
)

func setArgs(r *agentpb.CreateContainerRequest, args []string) {
	r.OCI = &oci.Spec{Process: &oci.Process{Args: args}, Linux: &oci.Linux{}, Root: &oci.Root{}}
}

// TestInputShape holds the form of a request against that of Kata's agent, written down by hand from its protocol.
func TestInputShape(t *testing.T) {
	cases := map[string]struct {
		request proto.Message
		want    string
	}{
		"empty storage": {
			&agentpb.CreateSandboxRequest{Storages: []*agentpb.Storage{{Driver: "local"}}, KernelModules: []*agentpb.KernelModule{}},
			`{"dns":[],"guest_hook_path":"","hostname":"","kernel_modules":[],"sandbox_id":"","sandbox_pidns":false,"storages":[
			{"driver":"local","driver_options":[],"fs_group":null,"fstype":"","mount_point":"","options":[],"shared":false,"source":""}]}`,
		},
		"enumeration": {
			&agentpb.UpdateInterfaceRequest{Interface: &typespb.Interface{Name: "eth0", Mtu: 1500, IPAddresses: []*typespb.IPAddress{{Family: 1, Address: "10.0.0.2", Mask: "24"}}}},
			`{"interface":{"IPAddresses":[{"address":"10.0.0.2","family":1,"mask":"24"}],"device":"","devicePath":"","hwAddr":"","mtu":1500,"name":"eth0","raw_flags":0,"type_":""}}`,
		},
		"word of the language": {&oci.Mount{Type: "bind", Options: []string{"ro"}}, `{"destination":"","options":["ro"],"source":"","type_":"bind"}`},
		"no bytes":             {&agentpb.WriteStreamRequest{ContainerId: "c", Data: []byte("secret")}, `{"container_id":"c","exec_id":""}`},
		"map and big number": {
			&oci.Linux{Sysctl: map[string]string{"a": "b"}, Resources: &oci.LinuxResources{CPU: &oci.LinuxCPU{Shares: 1<<64 - 1, Quota: -1}}},
			`{"CgroupsPath":"","Devices":[],"GIDMappings":[],"IntelRdt":null,"MaskedPaths":[],"MountLabel":"","Namespaces":[],"ReadonlyPaths":[],
			"Resources":{"BlockIO":null,"CPU":{"Cpus":"","Mems":"","Period":0,"Quota":-1,"RealtimePeriod":0,"RealtimeRuntime":0,"Shares":18446744073709551615},
			"Devices":[],"HugepageLimits":[],"Memory":null,"Network":null,"Pids":null},"RootfsPropagation":"","Seccomp":null,"Sysctl":{"a":"b"},"UIDMappings":[]}`,
		},
		"file": {
			&agentpb.CopyFileRequest{Path: "/a", FileMode: 0o100644, FileSize: 3, Offset: 1, Uid: -1, Data: []byte("abc")},
			`{"path":"/a","file_type":"Regular","symlink_target":null,"file_size":3,"file_mode":33188,"dir_mode":0,"uid":-1,"gid":0,"offset":1}`,
		},
		"symbolic link": {
			&agentpb.CopyFileRequest{Path: "/a", FileMode: 0o120777, Data: []byte("../b")},
			`{"path":"/a","file_type":"Symlink","symlink_target":"../b","file_size":0,"file_mode":41471,"dir_mode":0,"uid":0,"gid":0,"offset":0}`,
		},
		"socket": {
			&agentpb.CopyFileRequest{FileMode: 0o140777},
			`{"path":"","file_type":"Unknown","symlink_target":null,"file_size":0,"file_mode":49663,"dir_mode":0,"uid":0,"gid":0,"offset":0}`,
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := Input(tc.request, nil)
			if err != nil {
				t.Fatal(err)
			}
			if a, b := normal(t, got), normal(t, json.RawMessage(tc.want)); !reflect.DeepEqual(a, b) {
				t.Errorf("got  %v\nwant %v", a, b)
			}
		})
	}
}

// normal keeps numbers as they are written.
func normal(t *testing.T, v any) any {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	dec := json.NewDecoder(strings.NewReader(string(raw)))
	dec.UseNumber()
	var out any
	if err := dec.Decode(&out); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestInputFacts(t *testing.T) {
	in, err := Input(&agentpb.StatsContainerRequest{}, &Facts{
		Method: "CreateContainer", Image: &Image{Digest: "sha256:aa", Config: &ocispec.ImageConfig{User: "app"}, Signature: &Signature{Verified: true}},
		Process: &Process{ArgsOrigin: "image", UID: 1000},
	})
	if err != nil {
		t.Fatal(err)
	}
	p := compile(t, `package agent_policy
X if {
	input.coffer.image.digest == "sha256:aa"
	input.coffer.image.config.User == "app"
	input.coffer.image.signature.verified
	input.coffer.process.args_origin == "image"
	input.coffer.process.uid == 1000
}`)
	if d := decide(t, p, "X", in, true); !d.Allowed {
		t.Errorf("%v", in)
	}
}

func TestInputLimits(t *testing.T) {
	for name, request := range map[string]proto.Message{
		"many":          &agentpb.CreateSandboxRequest{Dns: make([]string, maxValues+1)},
		"long":          &agentpb.CreateSandboxRequest{Dns: []string{strings.Repeat("x", maxText+1)}},
		"link no text":  &agentpb.CopyFileRequest{FileMode: 0o120777, Data: []byte{0xff}},
		"link too long": &agentpb.CopyFileRequest{FileMode: 0o120777, Data: make([]byte, maxText+1)},
	} {
		if _, err := Input(request, nil); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzDecide shows any request to a policy: it must not fail but by a refusal, and must see the same each time.
func FuzzDecide(f *testing.F) {
	seed := func(m proto.Message) {
		raw, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	seed(create("c1", "/app"))
	seed(&agentpb.CreateContainerRequest{Storages: []*agentpb.Storage{{Driver: "image_guest_pull", FsGroup: &agentpb.FSGroup{GroupId: 1}}}})
	p, err := Compile(idiom)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		request := &agentpb.CreateContainerRequest{}
		if proto.Unmarshal(raw, request) != nil {
			t.Skip("no request")
		}
		first, err := Input(request, &Facts{Method: "CreateContainer"})
		if err != nil {
			return
		}
		second, err := Input(request, &Facts{Method: "CreateContainer"})
		if err != nil || !reflect.DeepEqual(first, second) {
			t.Fatalf("%v, or not the same", err)
		}
		d, err := p.Decide(t.Context(), RuleName(request), first, false)
		args := request.GetOCI().GetProcess().GetArgs()
		if err == nil && d.Allowed && (len(args) != 1 || args[0] != "/app" && args[0] != "/sidecar") {
			t.Fatalf("allowed %q", args)
		}
	})
}
