package hostroot

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
)

// Table turns the numbers of a folder back into what they stand for. The zero value knows none.
type Table struct {
	users, groups map[uint32]string
	primary       map[uint32]uint32
}

// Parse reads the two files of a folder. Lines that are not as Files writes them fail with errdefs.ErrInvalidArgument.
func Parse(passwd, group []byte) (Table, error) {
	t := Table{users: map[uint32]string{}, groups: map[uint32]string{}, primary: map[uint32]uint32{}}
	err := each(passwd, 7, func(f []string, id uint32) error {
		gid, err := parseID(f[3])
		if err != nil {
			return err
		}
		if Reserved(id) {
			t.users[id] = f[0]
		}
		t.primary[id] = gid
		return nil
	})
	if err != nil {
		return Table{}, fmt.Errorf("%s: %w: %w", PasswdFile, err, errdefs.ErrInvalidArgument)
	}
	err = each(group, 4, func(f []string, id uint32) error {
		if id != ImageGroups {
			t.groups[id] = f[0]
		}
		return nil
	})
	if err != nil {
		return Table{}, fmt.Errorf("%s: %w: %w", GroupFile, err, errdefs.ErrInvalidArgument)
	}
	return t, nil
}

// each calls fn with the fields of each line and the number in its third.
func each(data []byte, fields int, fn func(f []string, id uint32) error) error {
	if len(data) > MaxFile {
		return fmt.Errorf("%d bytes", len(data))
	}
	for line := range bytes.Lines(data) {
		f := strings.Split(strings.TrimSuffix(string(line), "\n"), ":")
		if len(f) != fields {
			return fmt.Errorf("line %.80q has %d fields", line, len(f))
		}
		if name := strings.TrimPrefix(f[0], reservedMark); !usable(name) {
			return fmt.Errorf("line %.80q has no name", line)
		}
		id, err := parseID(f[2])
		if err != nil {
			return err
		}
		if err := fn(f, id); err != nil {
			return err
		}
	}
	return nil
}

func parseID(text string) (uint32, error) {
	id, err := strconv.ParseUint(text, 10, 31)
	return uint32(id), err
}

// User is the name that a user id stands for.
func (t Table) User(id uint32) (string, bool) {
	name, ok := t.users[id]
	return name, ok
}

// Group is the name that a group id stands for.
func (t Table) Group(id uint32) (string, bool) {
	name, ok := t.groups[id]
	return name, ok
}

// Primary is the primary group of a user id, whether it stands for a name or not. A reserved one stands for what the
// image says of the user. Users that are not in the folder have none.
func (t Table) Primary(id uint32) (uint32, bool) {
	gid, ok := t.primary[id]
	return gid, ok
}
