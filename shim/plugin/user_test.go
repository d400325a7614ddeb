package plugin

import (
	"reflect"
	"testing"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"

	agentpb "github.com/coffer-project/coffer/proto/agent"
	guestpullpb "github.com/coffer-project/coffer/proto/guestpull/v1"
	"github.com/coffer-project/coffer/proto/hostroot"
	"github.com/coffer-project/coffer/shim/agent/agenttest"
)

// ofPod marks a container as one that CRI has made.
var ofPod = map[string]string{
	"io.kubernetes.cri.sandbox-id": podID, "io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.image-name": "registry.example/app:1",
}

// TestUserInRecord: containerd's record says who a container of a pod runs as, and nothing that a guest can say about it
// keeps the container from running.
func TestUserInRecord(t *testing.T) {
	looked := specs.User{UID: 1000, AdditionalGids: []uint32{0, 7}}
	app := &guestpullpb.ContainerUser{Uid: 1000, Gid: 1001, AdditionalGids: []uint32{7, 1001, 50000}}
	many := make([]uint32, 1025)
	for name, tc := range map[string]struct {
		told        *guestpullpb.ContainerUser
		annotations map[string]string
		stock       bool
		unavailable bool
		want        *specs.User
		attempts    int
	}{
		"other than on the host": {
			told: app, annotations: ofPod, want: &specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{7, 1001, 50000}}, attempts: 1,
		},
		"same as on the host":           {told: &guestpullpb.ContainerUser{Uid: 1000, AdditionalGids: []uint32{7, 0}}, annotations: ofPod},
		"not CRI's":                     {told: app},
		"a guest that does not tell":    {stock: true, annotations: ofPod},
		"containerd does not answer":    {told: app, annotations: ofPod, unavailable: true, attempts: 1},
		"too many groups":               {told: &guestpullpb.ContainerUser{AdditionalGids: many}, annotations: ofPod},
		"user that stands for a name":   {told: &guestpullpb.ContainerUser{Uid: hostroot.ImageGroups + 1}, annotations: ofPod},
		"group that stands for a name":  {told: &guestpullpb.ContainerUser{Gid: hostroot.ImageGroups}, annotations: ofPod},
		"groups that stand for a name":  {told: &guestpullpb.ContainerUser{AdditionalGids: []uint32{hostroot.ImageGroups}}, annotations: ofPod},
		"user that is none":             {told: &guestpullpb.ContainerUser{Uid: 1<<32 - 1}, annotations: ofPod},
		"the host's groups were stated": {told: &guestpullpb.ContainerUser{Uid: 1000}, annotations: ofPod, want: &specs.User{UID: 1000}, attempts: 1},
	} {
		t.Run(name, func(t *testing.T) {
			var options []agenttest.Option
			if tc.stock {
				options = append(options, agenttest.WithStockAgent())
			}
			h := newHarness(t, options...)
			h.user = looked
			h.guest.RunAs(tc.told)
			if tc.annotations != nil {
				h.runSandbox()
			}
			if tc.unavailable {
				h.records.fail(errdefs.ErrUnavailable)
			}
			must(t, h.create("c1", stdioPaths{}, tc.annotations))
			h.records.fail(nil)
			must(t, h.start("c1", ""))
			got, set := h.records.user("c1")
			if set != (tc.want != nil) || set && !reflect.DeepEqual(got, *tc.want) {
				t.Errorf("the record says %+v (%v)", got, set)
			}
			if n := h.records.attempts(); n != tc.attempts {
				t.Errorf("the record was set %d times, want %d", n, tc.attempts)
			}
		})
	}
}

// TestUserAfterUpdate: CRI's update of resources may bring an old user back.
func TestUserAfterUpdate(t *testing.T) {
	h := newHarness(t)
	h.runSandbox()
	h.guest.RunAs(&guestpullpb.ContainerUser{Uid: 1000})
	must(t, h.create("c1", stdioPaths{}, ofPod))
	must(t, h.start("c1", ""))
	must(t, h.records.SetUser(h.ctx, "c1", specs.User{UID: hostroot.ImageGroups + 1}))
	_, err := h.tasks.Update(h.ctx, &taskapi.UpdateTaskRequest{ID: "c1", Resources: &anypb.Any{Value: []byte(`{"pids":{"limit":5}}`)}})
	must(t, err)
	if got, _ := h.records.user("c1"); got.UID != 1000 {
		t.Errorf("the record says %+v", got)
	}
}

// TestAskedGroup: the guest must not look for a group in place of a 0 that was asked for, and must where none was.
func TestAskedGroup(t *testing.T) {
	for _, asked := range []bool{true, false} {
		h := newHarness(t)
		h.runSandbox()
		h.user, h.records.groups["c1"] = specs.User{UID: 1000, AdditionalGids: []uint32{0}}, asked
		must(t, h.create("c1", stdioPaths{}, ofPod))
		user := h.guest.Calls("CreateContainer")[0].Request.(*agentpb.CreateContainerRequest).GetOCI().GetProcess().GetUser()
		if want := map[bool]string{true: "1000:0", false: ""}[asked]; user.GetUsername() != want || user.GetUID() != 1000 {
			t.Errorf("group asked for: %t; the guest runs %v", asked, user)
		}
	}
}

// TestExecAsFirst: ids that the guest has told are complete; the guest must not look for a group in place of the 0.
func TestExecAsFirst(t *testing.T) {
	h := newHarness(t)
	h.runSandbox()
	h.guest.RunAs(&guestpullpb.ContainerUser{Uid: 1000, AdditionalGids: []uint32{0, 50000}})
	must(t, h.create("c1", stdioPaths{}, ofPod))
	must(t, h.start("c1", ""))
	h.user, _ = h.records.user("c1") // as containerd takes it
	must(t, h.exec("c1", "e1", stdioPaths{}))
	must(t, h.start("c1", "e1"))
	request := h.guest.Calls("ExecProcess")[0].Request.(*agentpb.ExecProcessRequest)
	user := request.GetProcess().GetUser()
	if user.GetUsername() != "1000:0" || user.GetUID() != 1000 || user.GetGID() != 0 || len(user.GetAdditionalGids()) != 2 {
		t.Errorf("exec as %v", user)
	}
}
