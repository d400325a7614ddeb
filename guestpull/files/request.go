package files

import (
	"fmt"
	"io/fs"
	"path"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	agentpb "github.com/coffer-project/coffer/proto/agent"
)

// Limits on names, those of Linux; depth is our own.
const (
	maxPath  = 4096
	maxName  = 255
	maxDepth = 64
)

// defaultDirMode is what parents get when the request does not say.
const defaultDirMode = 0o755

// kind is what a request makes.
type kind int

const (
	regular kind = iota
	directory
	symlink
)

// request is a checked request.
type request struct {
	// name is the path below the directory of all files.
	name string
	kind kind
	// mode are the permissions, dirMode those of parents that are made.
	mode, dirMode fs.FileMode
	uid, gid      int
	// size is that of the whole file, offset where data belongs, both in bytes.
	size, offset int64
	data         []byte
	// target is where a link leads.
	target string
}

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}

// check rebuilds a request that arrived for the directory dir.
func check(dir string, r *agentpb.CopyFileRequest) (*request, error) {
	name, err := checkPath(dir, r.GetPath())
	if err != nil {
		return nil, err
	}
	if r.GetUid() < 0 || r.GetGid() < 0 {
		return nil, invalid("owner %d:%d", r.GetUid(), r.GetGid())
	}
	out := &request{
		name: name, uid: int(r.GetUid()), gid: int(r.GetGid()), size: r.GetFileSize(), offset: r.GetOffset(), data: r.GetData(),
		mode: fs.FileMode(r.GetFileMode() & 0o777), dirMode: fs.FileMode(r.GetDirMode() & 0o777),
	}
	if out.dirMode == 0 {
		out.dirMode = defaultDirMode
	}
	switch r.GetFileMode() & unix.S_IFMT {
	case 0, unix.S_IFREG:
		return out, out.checkRegular()
	case unix.S_IFDIR:
		out.kind = directory
		// A volume's group passes on to what is made in it.
		if r.GetFileMode()&unix.S_ISGID != 0 {
			out.mode |= fs.ModeSetgid
		}
		if r.GetFileMode()&unix.S_ISVTX != 0 {
			out.mode |= fs.ModeSticky
		}
		return out, nil
	case unix.S_IFLNK:
		out.kind = symlink
		out.target = string(r.GetData())
		return out, checkTarget(name, out.target)
	}
	return nil, invalid("file type %#o", r.GetFileMode()&unix.S_IFMT)
}

func (r *request) checkRegular() error {
	if r.size < 0 || r.offset < 0 || r.offset > r.size || int64(len(r.data)) > r.size-r.offset {
		return invalid("%d bytes at %d of a file of %d", len(r.data), r.offset, r.size)
	}
	if len(r.data) == 0 && r.size != 0 {
		return invalid("no bytes at %d of a file of %d", r.offset, r.size)
	}
	return nil
}

// checkPath returns the path below dir.
func checkPath(dir, full string) (string, error) {
	if len(full) > maxPath || strings.ContainsRune(full, 0) {
		return "", invalid("path of %d bytes", len(full))
	}
	name, below := strings.CutPrefix(full, dir+"/")
	if !below || name == "" || path.Clean(full) != full {
		return "", invalid("path %q is not below %s", full, dir)
	}
	parts := strings.Split(name, "/")
	if len(parts) > maxDepth {
		return "", invalid("path %q is %d levels deep", full, len(parts))
	}
	for _, part := range parts {
		if len(part) > maxName {
			return "", invalid("path with a name of %d bytes", len(part))
		}
	}
	if parts[0] == incoming {
		return "", invalid("path %q is reserved", full)
	}
	return name, nil
}

// checkTarget accepts a link to anywhere, as long as it lies in a volume and is not the volume itself: it means what its text says
// where a container sees it, as in an image. The guest follows none: files are written through an os.Root, and mounts are made of
// paths without links.
func checkTarget(name, target string) error {
	if target == "" || len(target) > maxPath || strings.ContainsRune(target, 0) {
		return invalid("link to %d bytes", len(target))
	}
	if !strings.Contains(name, "/") {
		return invalid("link %q in the place of a volume", name)
	}
	return nil
}

// ownerOf returns who owns a file.
func ownerOf(info fs.FileInfo) (uid, gid int, err error) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, 0, fmt.Errorf("owner of %s is unknown: %w", info.Name(), errdefs.ErrInternal)
	}
	return int(st.Uid), int(st.Gid), nil
}
