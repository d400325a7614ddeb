package rootfs

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// maxUsersFile bounds /etc/passwd and /etc/group of an image, in bytes.
const maxUsersFile = 4 << 20

// maxID is the largest user or group that runc accepts.
const maxID = 1<<31 - 1

// User is who a process runs as.
type User struct {
	UID, GID uint32
	// Groups are the additional groups.
	Groups []uint32
}

// Resolve completes who a process runs as from the image's own files, which the host cannot read. With a name (a name or number,
// optionally with ":group") it replaces want's user and group. Without, it fills in the primary group of want's user if want has group 0,
// as a container engine that can read the files would; the 0 then was no wish and goes from the additional groups, too. In both cases
// the primary group and, unless strict, the groups that the image puts the user in are among the additional groups.
// NotFound: the image does not have the name.
func Resolve(root, name string, want User, strict bool) (User, error) {
	passwd, err := readInRoot(root, "etc/passwd")
	if err != nil {
		return User{}, err
	}
	group, err := readInRoot(root, "etc/group")
	if err != nil {
		return User{}, err
	}
	userName, groupName, hasGroup := strings.Cut(name, ":")
	account, known := findUser(passwd, userName, want.UID)
	out := User{UID: want.UID, GID: want.GID, Groups: slices.Clone(want.Groups)}
	if userName != "" {
		if out.UID, err = number(userName, account.uid, known, "user"); err != nil {
			return User{}, err
		}
		out.GID = account.gid
	} else if known && out.GID == 0 {
		out.GID = account.gid
		out.Groups = slices.DeleteFunc(out.Groups, func(gid uint32) bool { return gid == 0 })
	}
	if hasGroup {
		if out.GID, err = findGroup(group, groupName); err != nil {
			return User{}, err
		}
	}
	if known || userName != "" {
		out.Groups = append(out.Groups, out.GID)
	}
	if known && !strict {
		out.Groups = append(out.Groups, groupsOf(group, account.name)...)
	}
	slices.Sort(out.Groups)
	out.Groups = slices.Compact(out.Groups)
	return out, nil
}

// number returns the id that was found, or the number that the name itself is.
func number(name string, found uint32, known bool, what string) (uint32, error) {
	if known {
		return found, nil
	}
	if id, ok := parseID(name); ok {
		return id, nil
	}
	return 0, fmt.Errorf("%s %.64q is not in the image: %w", what, name, errdefs.ErrNotFound)
}

type account struct {
	name     string
	uid, gid uint32
}

// findUser looks for a name (or a number written as one), or for a number when the name is empty.
func findUser(passwd []byte, name string, uid uint32) (account, bool) {
	if id, ok := parseID(name); ok {
		name, uid = "", id
	}
	for f := range records(passwd, 4) {
		u, okU := parseID(f[2])
		g, okG := parseID(f[3])
		if !okU || !okG || f[0] == "" {
			continue
		}
		if name == "" && u == uid || name != "" && f[0] == name {
			return account{name: f[0], uid: u, gid: g}, true
		}
	}
	return account{}, false
}

// findGroup looks for a name. A number is itself, also where a group of the image is called by it.
func findGroup(group []byte, name string) (uint32, error) {
	if id, ok := parseID(name); ok {
		return id, nil
	}
	for f := range records(group, 3) {
		if gid, ok := parseID(f[2]); ok && f[0] == name && name != "" {
			return gid, nil
		}
	}
	return 0, fmt.Errorf("group %.64q is not in the image: %w", name, errdefs.ErrNotFound)
}

func groupsOf(group []byte, user string) []uint32 {
	var out []uint32
	for f := range records(group, 4) {
		if gid, ok := parseID(f[2]); ok && slices.Contains(strings.Split(f[3], ","), user) {
			out = append(out, gid)
		}
	}
	return out
}

func parseID(s string) (uint32, bool) {
	id, err := strconv.ParseUint(s, 10, 32)
	return uint32(id), err == nil && id <= maxID
}

// records yields the fields of each line that has n or more of them.
func records(data []byte, n int) func(yield func([]string) bool) {
	return func(yield func([]string) bool) {
		lines := bufio.NewScanner(bytes.NewReader(data))
		lines.Buffer(nil, maxUsersFile)
		for lines.Scan() {
			fields := strings.Split(strings.TrimSpace(lines.Text()), ":")
			if len(fields) >= n && !yield(fields) {
				return
			}
		}
	}
}

// readInRoot reads a regular file of the image, following symbolic links inside the image only. A file that does not exist is empty.
func readInRoot(root, name string) ([]byte, error) {
	dir, err := os.OpenFile(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the root file system: %w", err)
	}
	defer dir.Close()
	// Not blocking: an image may have a named pipe here.
	fd, err := unix.Openat2(int(dir.Fd()), name, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("open /%s of the image: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("look at /%s of the image: %w", name, err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("/%s of the image is not a regular file: %w", name, errdefs.ErrInvalidArgument)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxUsersFile+1))
	if err != nil {
		return nil, fmt.Errorf("read /%s of the image: %w", name, err)
	}
	if len(data) > maxUsersFile {
		return nil, fmt.Errorf("/%s of the image is larger than %d bytes: %w", name, maxUsersFile, errdefs.ErrInvalidArgument)
	}
	return data, nil
}
