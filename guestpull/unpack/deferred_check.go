package unpack

import (
	"fmt"
	"math"
	"path"

	"github.com/containerd/errdefs"
)

// Check refuses with ErrInvalidArgument what Apply never leaves undone within these limits. It is for those who got a
// Deferred from a process that they do not trust.
func (d *Deferred) Check(limits Limits) error {
	if len(d.Implied) > limits.Entries || len(d.Links) > maxDeferredLinks {
		return fmt.Errorf("%d directories and %d links are left: %w", len(d.Implied), len(d.Links), errdefs.ErrInvalidArgument)
	}
	for _, name := range d.Implied {
		if err := checkPlace(name); err != nil {
			return err
		}
	}
	for i := range d.Links {
		if err := d.Links[i].check(limits); err != nil {
			return err
		}
	}
	return nil
}

func (l *Link) check(limits Limits) error {
	if err := checkPlace(l.Name); err != nil {
		return err
	}
	if err := checkPlace(l.Target); err != nil {
		return err
	}
	if l.UID < 0 || l.UID > math.MaxUint32 || l.GID < 0 || l.GID > math.MaxUint32 || l.Mode != l.Mode&allModeBits {
		return fmt.Errorf("link has owner %d:%d and mode %o: %w", l.UID, l.GID, l.Mode, errdefs.ErrInvalidArgument)
	}
	size := 0
	for key, value := range l.Xattrs {
		size += len(xattrPrefix) + len(key) + len(value)
	}
	if size > limits.Xattrs {
		return fmt.Errorf("link has %d bytes of extended attributes: %w", size, errdefs.ErrInvalidArgument)
	}
	return nil
}

// checkPlace wants a clean path of something below the layer.
func checkPlace(name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	if name == "" || name == "." || name != path.Clean("/" + name)[1:] {
		return fmt.Errorf("name is no clean path: %w", errdefs.ErrInvalidArgument)
	}
	return nil
}
