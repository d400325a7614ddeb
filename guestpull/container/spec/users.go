package spec

import (
	"math"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coffer-project/coffer/proto/oci"
)

// Users are the mappings of a user namespace: which users and groups of the guest those of a container are. The zero
// value means the guest's own users.
type Users struct{ UID, GID specs.LinuxIDMapping }

// Mapped tells whether there is a user namespace.
func (u Users) Mapped() bool { return u.UID.Size > 0 }

// Guest returns the user and group of the guest that uid and gid of a container are, false if they are none.
func (u Users) Guest(uid, gid uint32) (guestUID, guestGID uint32, ok bool) {
	if !u.Mapped() {
		return uid, gid, true
	}
	return u.UID.HostID + uid, u.GID.HostID + gid, uid < u.UID.Size && gid < u.GID.Size
}

// MappedUsers reads what a request asks for. Each list may hold one mapping, which begins with the container's root and
// must not give it the guest's. Everything else is InvalidArgument.
func MappedUsers(in *oci.Linux) (Users, error) {
	uids, gids := in.GetUIDMappings(), in.GetGIDMappings()
	if len(uids)+len(gids) == 0 {
		return Users{}, nil
	}
	if len(uids) != 1 || len(gids) != 1 {
		return Users{}, refuse("user namespace with %d user and %d group mappings: one of each is needed", len(uids), len(gids))
	}
	uid, err := buildMapping("user", uids[0])
	if err != nil {
		return Users{}, err
	}
	gid, err := buildMapping("group", gids[0])
	return Users{UID: uid, GID: gid}, err
}

func buildMapping(what string, m *oci.LinuxIDMapping) (specs.LinuxIDMapping, error) {
	first, size := m.GetHostID(), m.GetSize()
	if m.GetContainerID() != 0 || first == 0 || size == 0 || uint64(first)+uint64(size) > math.MaxUint32 {
		return specs.LinuxIDMapping{}, refuse("%s mapping %d:%d:%d: it must begin with 0 in the container and leave out 0 of the guest",
			what, m.GetContainerID(), first, size)
	}
	return specs.LinuxIDMapping{HostID: first, Size: size}, nil
}

// mapMounts makes mounts fit for a user namespace. What comes from the pod's files keeps its owners as the container
// sees them. sysfs shows the network namespace, which stays the guest's, so only the guest can mount it.
func mapMounts(mounts []specs.Mount, users Users) {
	for i := range mounts {
		m := &mounts[i]
		switch m.Type {
		case Bind:
			m.UIDMappings = []specs.LinuxIDMapping{users.UID}
			m.GIDMappings = []specs.LinuxIDMapping{users.GID}
		case "sysfs":
			m.Type, m.Source = "none", "/sys"
			m.Options = []string{"rbind", "rro", "nosuid", "nodev", "noexec"}
		}
	}
}
