package unpack

import (
	"archive/tar"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// maxDeferredLinks bounds how many hard links of a layer may wait for the layers below.
const maxDeferredLinks = 64 << 10

// Deferred is what Apply could not do, because layers are unpacked side by side and the layers below were not at hand.
// Complete does it. It holds names and attributes only, so that it can be handed from one process to another.
type Deferred struct {
	// Implied are directories, as paths relative to the layer, that it has files in without having an entry of their own;
	// their attributes belong to a lower layer. Parents come before children.
	Implied []string
	// Links are hard links, in the order of the layer, whose targets are in no entry before them.
	Links []Link
}

// Empty reports whether nothing is left to do.
func (d *Deferred) Empty() bool { return len(d.Implied) == 0 && len(d.Links) == 0 }

// Link is a hard link to a file of a layer below.
type Link struct {
	// Name is the place of the new name in the layer; no part of it is a symbolic link. Target is what the entry says.
	Name, Target     string
	UID, GID         int
	Mode             int64
	Access, Modified time.Time
	Xattrs           map[string]string
}

// errNoTarget is a link that leads nowhere.
var errNoTarget = fmt.Errorf("make hard link: neither this layer nor one below has its target: %w", errdefs.ErrInvalidArgument)

// deferLink remembers a link, and removes what has its name already: the entry replaces it now.
func (w *writer) deferLink(hdr *tar.Header, dir int, base, target string) error {
	if len(w.links) >= maxDeferredLinks {
		return fmt.Errorf("layer has more than %d hard links to layers below: %w", maxDeferredLinks, errdefs.ErrOutOfRange)
	}
	place, err := w.tree.name(dir)
	if err != nil {
		return fmt.Errorf("make hard link: %w", err)
	}
	name, err := filepath.Rel(w.tree.path, filepath.Join(place, base))
	if err != nil {
		return fmt.Errorf("make hard link: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW); err == nil {
		w.tree.stale = true
		if err := removeAll(dir, base); err != nil {
			return fmt.Errorf("remove what had the name before: %w", err)
		}
	} else if !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("make hard link: %w", err)
	}
	link := Link{
		Name: strings.Clone(name), Target: strings.Clone(target),
		UID: hdr.Uid, GID: hdr.Gid, Mode: hdr.Mode & allModeBits, Access: hdr.AccessTime, Modified: hdr.ModTime,
	}
	for record, value := range hdr.PAXRecords {
		if key, ok := strings.CutPrefix(record, xattrPrefix); ok {
			if link.Xattrs == nil {
				link.Xattrs = map[string]string{}
			}
			link.Xattrs[strings.Clone(key)] = strings.Clone(value)
		}
	}
	w.links = append(w.links, link)
	return nil
}

// header is the entry that a link was made of, as far as its attributes go.
func (l *Link) header() *tar.Header {
	hdr := &tar.Header{
		Typeflag: tar.TypeLink, Name: l.Name, Linkname: l.Target,
		Uid: l.UID, Gid: l.GID, Mode: l.Mode, AccessTime: l.Access, ModTime: l.Modified,
	}
	for key, value := range l.Xattrs {
		if hdr.PAXRecords == nil {
			hdr.PAXRecords = map[string]string{}
		}
		hdr.PAXRecords[xattrPrefix+key] = value
	}
	return hdr
}
