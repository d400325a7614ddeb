package bundle

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	ocipb "github.com/coffer-project/coffer/proto/oci"

	"github.com/coffer-project/coffer/proto/hostroot"
	"github.com/coffer-project/coffer/proto/volume"
)

// The annotation by which our guest learns that a process gets no groups but those in the request. A guest that does not
// know it adds the image's groups, as it does without.
const (
	annotationGroups = "io.coffer/supplemental-groups-policy"
	groupsStrict     = "strict"
)

// Users turns the ids of a container's processes back into the names that containerd looked up on the host. The zero
// value leaves ids as they are.
type Users struct {
	table hostroot.Table
	// first is who the container's first process runs as, nil when that is not known.
	first *specs.User
	// asked says that a group 0 is what the pod asks for.
	asked bool
}

// Unclear tells whether the group 0 of a user may be a wish as well as a gap: containerd writes it, too, where it finds no
// group for the user in the folder.
func (u Users) Unclear(in specs.User) bool {
	_, listed := u.table.Primary(in.UID)
	return in.UID != 0 && in.GID == 0 && in.Username == "" && !listed
}

// WithAskedGroup makes a group 0 one that is not to be completed.
func (u Users) WithAskedGroup() Users {
	u.asked = true
	return u
}

// WithFirst adds who the container's first process runs as. containerd gives its ids to execs once they are in its record
// of the container, and then they are complete: a group 0 among them is the image's and no gap to fill.
func (u Users) WithFirst(user specs.User) Users {
	u.first = &user
	return u
}

// LoadUsers reads the names from the folder that the root's mount binds. A snapshotter that offers none is fine.
func LoadUsers(rootfs []*types.Mount) (Users, error) {
	for _, m := range rootfs {
		if _, found, err := volume.FromOptions(m.GetOptions()); err != nil || !found || !filepath.IsAbs(m.GetSource()) {
			continue
		}
		passwd, err := readHostRoot(m.GetSource(), hostroot.PasswdFile)
		if errors.Is(err, fs.ErrNotExist) {
			return Users{}, nil
		}
		if err != nil {
			return Users{}, fmt.Errorf("read names of users: %w", err)
		}
		group, err := readHostRoot(m.GetSource(), hostroot.GroupFile)
		if err != nil {
			return Users{}, fmt.Errorf("read names of groups: %w", err)
		}
		table, err := hostroot.Parse(passwd, group)
		if err != nil {
			return Users{}, fmt.Errorf("names of users in %s: %w", m.GetSource(), err)
		}
		return Users{table: table}, nil
	}
	return Users{}, nil
}

func readHostRoot(dir, file string) ([]byte, error) {
	f, err := os.Open(filepath.Join(dir, file))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, hostroot.MaxFile+1))
}

// request makes the user of a request. A name goes beside the number that stood for it: our guest takes the name, and
// one that ignores it runs the process as a user that owns nothing, not as the super-user.
func (u Users) request(in specs.User) (*ocipb.User, error) {
	out := &ocipb.User{UID: in.UID, GID: in.GID, Username: in.Username}
	for _, gid := range in.AdditionalGids {
		// A group that stands for something is the primary one, which the guest finds out, or the mark of the policy.
		if !hostroot.Reserved(gid) {
			out.AdditionalGids = append(out.AdditionalGids, gid)
		}
	}
	if u.first != nil && in.UID == u.first.UID && in.GID == u.first.GID && in.Username == "" {
		out.Username = fmt.Sprintf("%d:%d", in.UID, in.GID)
		return out, nil
	}
	primary, listed := u.table.Primary(in.UID)
	name, byName := u.table.User(in.UID)
	group, groupByName := u.table.Group(in.GID)
	if !byName {
		name = strconv.FormatUint(uint64(in.UID), 10)
	}
	switch {
	case hostroot.Reserved(in.UID) && !byName:
		return nil, fmt.Errorf("user %d: ids from %d on stand for names, and no name is known for this one: %w",
			in.UID, hostroot.ImageGroups, errdefs.ErrInvalidArgument)
	case groupByName:
		out.Username = name + ":" + group
	case listed && hostroot.Reserved(primary) && in.GID == primary:
		// The primary group is what the image says: the guest completes a name, and a number without a group.
		if byName {
			out.Username = name
		} else {
			out.GID = 0
		}
	case hostroot.Reserved(in.GID):
		return nil, fmt.Errorf("group %d: ids from %d on stand for names, and no name is known for this one: %w",
			in.GID, hostroot.ImageGroups, errdefs.ErrInvalidArgument)
	case byName || listed && in.UID != 0 || u.asked && u.Unclear(in):
		// A group that was asked for by number, 0 included, is not to be completed.
		out.Username = name + ":" + strconv.FormatUint(uint64(in.GID), 10)
	}
	return out, nil
}

// strict tells whether the process must not get the groups that the image puts its user in. containerd has looked them
// up unless that was asked for. A user that it could not find is in no group either way; then the pod's own wish counts.
func (u Users) strict(in specs.User, pod bool) bool {
	_, listed := u.table.Primary(in.UID)
	return (listed || pod) && !slices.Contains(in.AdditionalGids, hostroot.ImageGroups)
}
