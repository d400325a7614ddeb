// Package proto_test pins what the generated packages say on the wire.
package proto_test

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	// These register protocol files of their own. That this test binary starts at all shows that none of their names
	// meets one of ours, which would be a panic in every program that links both.
	_ "github.com/containerd/containerd/api/runtime/sandbox/v1"
	_ "github.com/containerd/containerd/api/runtime/task/v3"
	_ "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	_ "github.com/containerd/containerd/api/types"
	_ "github.com/containerd/containerd/api/types/task"
	_ "github.com/containers/ocicrypt"
	"google.golang.org/protobuf/reflect/protoreflect"
	_ "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coffer-project/coffer/proto/aa"
	"github.com/coffer-project/coffer/proto/agent"
	"github.com/coffer-project/coffer/proto/cdh"
	guestpull "github.com/coffer-project/coffer/proto/guestpull/v1"
	"github.com/coffer-project/coffer/proto/health"
	"github.com/coffer-project/coffer/proto/keyprovider"
	"github.com/coffer-project/coffer/proto/oci"
	"github.com/coffer-project/coffer/proto/types"
)

var update = flag.Bool("update", false, "write testdata/wire.golden; look at the difference before committing it")

// TestWire compares all names and numbers with a list that was checked against the peers' own files.
func TestWire(t *testing.T) {
	var lines []string
	for _, file := range []protoreflect.FileDescriptor{
		aa.File_proto_aa_aa_proto, agent.File_proto_agent_agent_proto, agent.File_proto_agent_stats_proto,
		cdh.File_proto_cdh_cdh_proto, guestpull.File_proto_guestpull_v1_diagnostics_proto,
		guestpull.File_proto_guestpull_v1_forward_proto, guestpull.File_proto_guestpull_v1_progress_proto,
		guestpull.File_proto_guestpull_v1_files_proto,
		health.File_proto_health_health_proto, keyprovider.File_proto_keyprovider_keyprovider_proto,
		oci.File_proto_oci_oci_proto, types.File_proto_types_types_proto,
	} {
		lines = append(lines, services(file.Services())...)
		lines = append(lines, messages(file.Messages())...)
		lines = append(lines, enums(file.Enums())...)
	}
	slices.Sort(lines)
	got := []byte(strings.Join(lines, "\n") + "\n")
	const golden = "testdata/wire.golden"
	if *update {
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(got, want) {
		return
	}
	wantLines := strings.Split(strings.TrimSpace(string(want)), "\n")
	for _, line := range lines {
		if !slices.Contains(wantLines, line) {
			t.Errorf("not in the wire contract: %s", line)
		}
	}
	for _, line := range wantLines {
		if !slices.Contains(lines, line) {
			t.Errorf("missing from the generated code: %s", line)
		}
	}
}

func services(in protoreflect.ServiceDescriptors) (out []string) {
	for i := range in.Len() {
		methods := in.Get(i).Methods()
		for j := range methods.Len() {
			m := methods.Get(j)
			out = append(out, fmt.Sprintf("rpc /%s/%s %s %s", in.Get(i).FullName(), m.Name(), m.Input().FullName(), m.Output().FullName()))
		}
	}
	return out
}

func messages(in protoreflect.MessageDescriptors) (out []string) {
	for i := range in.Len() {
		m := in.Get(i)
		if m.IsMapEntry() {
			continue
		}
		if m.Fields().Len() == 0 {
			out = append(out, fmt.Sprintf("message %s empty", m.FullName()))
		}
		for j := range m.Fields().Len() {
			f := m.Fields().Get(j)
			out = append(out, fmt.Sprintf("message %s %d %s %s", m.FullName(), f.Number(), f.Name(), fieldType(f)))
		}
		out = append(out, messages(m.Messages())...)
		out = append(out, enums(m.Enums())...)
	}
	return out
}

func fieldType(f protoreflect.FieldDescriptor) string {
	name := f.Kind().String()
	switch {
	case f.IsMap():
		return "map<" + fieldType(f.MapKey()) + "," + fieldType(f.MapValue()) + ">"
	case f.Message() != nil:
		name = string(f.Message().FullName())
	case f.Enum() != nil:
		name = string(f.Enum().FullName())
	}
	if f.IsList() {
		name = "repeated " + name
	}
	return name
}

func enums(in protoreflect.EnumDescriptors) (out []string) {
	for i := range in.Len() {
		values := in.Get(i).Values()
		for j := range values.Len() {
			out = append(out, fmt.Sprintf("enum %s %d %s", in.Get(i).FullName(), values.Get(j).Number(), values.Get(j).Name()))
		}
	}
	return out
}
