package guestimage

import (
	"bytes"
	"fmt"
	"path"
	"slices"
	"strings"
)

// File types of a cpio entry's mode.
const (
	typeDir     = 0o040000
	typeChar    = 0o020000
	typeRegular = 0o100000
	typeLink    = 0o120000
)

// entry is one file of the initramfs. All belong to root and carry the time zero.
type entry struct {
	path string // without leading slash
	mode uint32 // file type and permissions
	data []byte // content, or the target of a symbolic link
	// major and minor number a device.
	major, minor uint32
}

func dir(name string, perm uint32) entry { return entry{path: name, mode: typeDir | perm} }

func file(name string, perm uint32, data []byte) entry {
	return entry{path: name, mode: typeRegular | perm, data: data}
}

func link(name, target string) entry {
	return entry{path: name, mode: typeLink | 0o777, data: []byte(target)}
}

func char(name string, perm, major, minor uint32) entry {
	return entry{path: name, mode: typeChar | perm, major: major, minor: minor}
}

// archive writes entries as an uncompressed newc cpio archive, the kernel's initramfs format, sorted by path. Parents
// must be among the entries: the kernel does not make them.
func archive(entries []entry) ([]byte, error) {
	sorted := slices.Clone(entries)
	slices.SortFunc(sorted, func(a, b entry) int { return strings.Compare(a.path, b.path) })
	if err := checkTree(sorted); err != nil {
		return nil, err
	}
	var out bytes.Buffer
	for i, e := range sorted {
		// Inode numbers count from one, so that no two entries look like hard links.
		writeEntry(&out, uint32(i+1), e)
	}
	writeEntry(&out, 0, entry{path: "TRAILER!!!"})
	return out.Bytes(), nil
}

// checkTree refuses what the kernel would unpack wrongly or not at all.
func checkTree(sorted []entry) error {
	dirs := map[string]bool{".": true}
	seen := map[string]bool{}
	for _, e := range sorted {
		switch {
		case e.path == "" || e.path != path.Clean(e.path) || path.IsAbs(e.path) || strings.HasPrefix(e.path, ".."):
			return fmt.Errorf("initramfs path %q is not clean and relative", e.path)
		case seen[e.path]:
			return fmt.Errorf("initramfs path %q is there twice", e.path)
		case !dirs[path.Dir(e.path)]:
			return fmt.Errorf("initramfs path %q has no parent directory", e.path)
		case len(e.data) > 1<<31:
			return fmt.Errorf("initramfs file %q is larger than the format allows", e.path)
		}
		seen[e.path] = true
		if e.mode&^0o7777 == typeDir {
			dirs[e.path] = true
		}
	}
	return nil
}

// writeEntry appends the header of thirteen hexadecimal numbers, the name and the content, each padded to four bytes.
func writeEntry(out *bytes.Buffer, inode uint32, e entry) {
	links := 1
	if e.mode&^0o7777 == typeDir {
		links = 2
	}
	fmt.Fprintf(out, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		inode, e.mode, 0, 0, links, 0, len(e.data), 0, 0, e.major, e.minor, len(e.path)+1, 0)
	out.WriteString(e.path)
	out.WriteByte(0)
	pad(out)
	out.Write(e.data)
	pad(out)
}

func pad(out *bytes.Buffer) {
	for out.Len()%4 != 0 {
		out.WriteByte(0)
	}
}
