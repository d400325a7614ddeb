package spec

import (
	"errors"
	"reflect"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coffer-project/coffer/proto/oci"
)

// mapped is honest in a user namespace.
func mapped() *oci.Spec {
	s := honest()
	s.Linux.Namespaces = append(s.Linux.Namespaces, &oci.LinuxNamespace{Type: "user"})
	s.Linux.UIDMappings = []*oci.LinuxIDMapping{{HostID: 1000, Size: 65536}}
	s.Linux.GIDMappings = []*oci.LinuxIDMapping{{HostID: 2000, Size: 65536}}
	s.Mounts = append(s.Mounts, &oci.Mount{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"ro"}})
	return s
}

func TestUserNamespace(t *testing.T) {
	in := mapped()
	users, err := MappedUsers(in.GetLinux())
	if err != nil {
		t.Fatal(err)
	}
	o := options()
	o.Users, o.User = users, "/ns/user"
	s, err := Build(in, o)
	if err != nil {
		t.Fatal(err)
	}
	uids, gids := []specs.LinuxIDMapping{{HostID: 1000, Size: 65536}}, []specs.LinuxIDMapping{{HostID: 2000, Size: 65536}}
	if !reflect.DeepEqual(s.Linux.UIDMappings, uids) || !reflect.DeepEqual(s.Linux.GIDMappings, gids) {
		t.Errorf("mappings: %+v, %+v", s.Linux.UIDMappings, s.Linux.GIDMappings)
	}
	if last := s.Linux.Namespaces[len(s.Linux.Namespaces)-1]; last != (specs.LinuxNamespace{Type: "user", Path: "/ns/user"}) {
		t.Errorf("namespace: %+v", last)
	}
	if m := s.Mounts[2]; !reflect.DeepEqual(m.UIDMappings, uids) || !reflect.DeepEqual(m.GIDMappings, gids) {
		t.Errorf("bind mount: %+v", m)
	}
	if m := s.Mounts[0]; m.UIDMappings != nil {
		t.Errorf("proc: %+v", m)
	}
	if m := s.Mounts[3]; m.Source != "/sys" || !reflect.DeepEqual(m.Options, []string{"rbind", "rro", "nosuid", "nodev", "noexec"}) {
		t.Errorf("sysfs: %+v", m)
	}
	// What the request says and what the pod has been asked for must be one thing.
	if _, err := Build(in, options()); !errdefs.IsInvalidArgument(err) {
		t.Errorf("mappings without a user namespace: %v", err)
	}
	if _, err := Build(honest(), o); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a user namespace without mappings: %v", err)
	}
}

func TestMappedUsersRefuses(t *testing.T) {
	for name, change := range map[string]func(*oci.Linux){
		"one list of two":      func(l *oci.Linux) { l.GIDMappings = nil },
		"two mappings":         func(l *oci.Linux) { l.UIDMappings = append(l.UIDMappings, l.UIDMappings[0]) },
		"root of the guest":    func(l *oci.Linux) { l.UIDMappings[0].HostID = 0 },
		"mapping without root": func(l *oci.Linux) { l.GIDMappings[0].ContainerID = 1 },
		"empty mapping":        func(l *oci.Linux) { l.GIDMappings[0].Size = 0 },
		"past the end":         func(l *oci.Linux) { l.UIDMappings[0].Size = 1<<32 - 1000 },
	} {
		t.Run(name, func(t *testing.T) {
			l := mapped().GetLinux()
			change(l)
			if _, err := MappedUsers(l); !errors.Is(err, errdefs.ErrInvalidArgument) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestUsersInTheGuest(t *testing.T) {
	u := Users{UID: specs.LinuxIDMapping{HostID: 1000, Size: 100}, GID: specs.LinuxIDMapping{HostID: 2000, Size: 50}}
	if uid, gid, ok := u.Guest(7, 8); uid != 1007 || gid != 2008 || !ok {
		t.Errorf("got %d:%d, %t", uid, gid, ok)
	}
	if _, _, ok := u.Guest(7, 50); ok {
		t.Error("a group outside the mapping is somebody")
	}
	if uid, gid, ok := (Users{}).Guest(7, 8); uid != 7 || gid != 8 || !ok {
		t.Errorf("without mappings: %d:%d, %t", uid, gid, ok)
	}
}
