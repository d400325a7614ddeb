// Package hostroot is the folder that stands on the host for the root of a container whose image only its guest sees.
//
// containerd looks users and groups up in the root before it starts a container, and fails when a name is not there. So
// the snapshotter puts a passwd and a group file into the folder that have the names, with numbers that stand for them:
// ids of a range that nothing else uses. The look-up on the host then never fails and never decides. The shim turns the
// numbers back into names, and the guest looks those up in the image.
//
// The folder of an image that is mounted as a volume says which image that is, too.
package hostroot

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Files in the folder.
const (
	PasswdFile = "etc/passwd"
	GroupFile  = "etc/group"
	// VolumeFile holds the mount option of package volume that names the image.
	VolumeFile = ".coffer/volume"
)

// The reserved range is the uppermost 65536 of the ids that containerd and runc accept. Linux distributions and systemd
// give out none of them.
const (
	first      = 0x7fff_0000
	firstUser  = first + 1
	firstGroup = first + 0x8000
	last       = 0x7fff_ffff
)

// ImageGroups is the additional group that stands for all groups that the image itself puts the user in. Every user in
// the passwd file is a member. containerd gives a process the groups of its user unless the pod's policy for
// supplemental groups is Strict: so the absence of this group means Strict.
const ImageGroups uint32 = first

// reservedMark begins the names of entries that stand for no name. No name that is taken from an image has it.
const reservedMark = "/"

const (
	// maxName bounds one name and maxNames all of one kind.
	maxName  = 128
	maxNames = 1000
	// MaxFile is more than any file in the folder has, in bytes.
	MaxFile = 1 << 20
)

// wellKnown are names that a client of containerd may ask for although the image does not. They need not be in the
// image: the guest says so if they are not.
var wellKnown = strings.Fields(`adm audio backup bin daemon dialout disk floppy ftp games gnats guest halt http httpd irc
	kmem list lp mail man mem messagebus mysql news nginx node nobody nogroup nonroot ntp operator postgres proxy redis
	shadow shutdown squid sshd staff sudo sync sys systemd-network tape tomcat tty users utmp uucp video wheel www-data`)

// Reserved tells whether an id is one of those that stand for something.
func Reserved(id uint32) bool { return id >= first && id <= last }

// Names are the users and groups of one folder.
type Names struct {
	users, groups []string
	uids          []int
}

// Collect takes the names from the user fields of image configurations, which are written user, uid, user:group and so
// on, and adds those that are generally known. What could not stand in a passwd file, or is too much, is left out.
func Collect(fields ...string) Names {
	n := Names{users: slices.Clone(wellKnown), groups: append([]string{"root"}, wellKnown...)}
	for _, field := range fields {
		user, group, _ := strings.Cut(field, ":")
		if id, isName := number(user); isName && usable(user) && user != "root" {
			n.users = append(n.users, user)
		} else if id > 0 && id < first {
			n.uids = append(n.uids, id)
		}
		if _, isName := number(group); isName && usable(group) {
			n.groups = append(n.groups, group)
		}
	}
	n.users, n.groups, n.uids = ordered(n.users), ordered(n.groups), ordered(n.uids)
	return n
}

// number reads a number, or says that containerd would take the text for a name.
func number(text string) (id int, isName bool) {
	id, err := strconv.Atoi(text)
	return id, errors.Is(err, strconv.ErrSyntax)
}

func ordered[T int | string](in []T) []T {
	slices.Sort(in)
	in = slices.Compact(in)
	return in[:min(len(in), maxNames)]
}

// usable tells whether a name can stand in the files and be found again by whoever reads them.
func usable(name string) bool {
	return name != "" && len(name) <= maxName && utf8.ValidString(name) && !strings.ContainsFunc(name, func(r rune) bool {
		return unicode.IsSpace(r) || !unicode.IsPrint(r) || strings.ContainsRune(`:,#/\`, r)
	})
}

// Files returns the content of the passwd and the group file.
//
// A user that the image names only by number has an entry, too, for its groups; its primary group is one that stands
// for "what the image says". The super-user is what it is everywhere.
func (n Names) Files() map[string][]byte {
	var passwd, group bytes.Buffer
	members := []string{"root"}
	fmt.Fprintln(&passwd, "root:x:0:0:::")
	id := firstUser
	for _, name := range n.users {
		fmt.Fprintf(&passwd, "%s:x:%d:%d:::\n", name, id, id)
		members = append(members, name)
		id++
	}
	for _, uid := range n.uids {
		name := reservedMark + strconv.Itoa(uid)
		fmt.Fprintf(&passwd, "%s:x:%d:%d:::\n", name, uid, id)
		members = append(members, name)
		id++
	}
	fmt.Fprintf(&group, "%simage-groups:x:%d:%s\n", reservedMark, ImageGroups, strings.Join(members, ","))
	for i, name := range n.groups {
		fmt.Fprintf(&group, "%s:x:%d:\n", name, firstGroup+i)
	}
	return map[string][]byte{PasswdFile: passwd.Bytes(), GroupFile: group.Bytes()}
}
