package hostroot

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/user"
)

// parsed reads the files as containerd does.
func parsed(tb testing.TB, files map[string][]byte) ([]user.User, []user.Group) {
	tb.Helper()
	users, err := user.ParsePasswd(bytes.NewReader(files[PasswdFile]))
	if err != nil {
		tb.Fatal(err)
	}
	groups, err := user.ParseGroup(bytes.NewReader(files[GroupFile]))
	if err != nil {
		tb.Fatal(err)
	}
	return users, groups
}

// TestRoundTrip: what containerd finds for a name, the table turns back.
func TestRoundTrip(t *testing.T) {
	files := Collect("app:crew", "1000", "1001:crew", "0", "root", "www-data:33", "").Files()
	table, err := Parse(files[PasswdFile], files[GroupFile])
	if err != nil {
		t.Fatal(err)
	}
	users, groups := parsed(t, files)
	seen := map[string]user.User{}
	for _, u := range users {
		seen[u.Name] = u
		gid, ok := table.Primary(uint32(u.Uid))
		if !ok || gid != uint32(u.Gid) {
			t.Errorf("primary group of %s: %d, %v", u.Name, gid, ok)
		}
	}
	for _, name := range []string{"app", "www-data", "nobody"} {
		u, ok := seen[name]
		if !ok || !Reserved(uint32(u.Uid)) || u.Uid != u.Gid {
			t.Errorf("%s is %+v", name, u)
		}
		if got, ok := table.User(uint32(u.Uid)); !ok || got != name {
			t.Errorf("user %d stands for %q", u.Uid, got)
		}
	}
	for _, id := range []uint32{1000, 1001} {
		if gid, ok := table.Primary(id); !ok || !Reserved(gid) {
			t.Errorf("primary group of %d: %d, %v", id, gid, ok)
		}
		if _, ok := table.User(id); ok {
			t.Errorf("%d stands for a name", id)
		}
	}
	if gid, ok := table.Primary(0); !ok || gid != 0 {
		t.Errorf("primary group of root: %d, %v", gid, ok)
	}
	for _, g := range groups {
		if uint32(g.Gid) == ImageGroups {
			if len(g.List) != len(users) {
				t.Errorf("%d users, %d of them with the image's groups", len(users), len(g.List))
			}
			continue
		}
		if got, ok := table.Group(uint32(g.Gid)); !ok || got != g.Name {
			t.Errorf("group %d stands for %q, not %q", g.Gid, got, g.Name)
		}
	}
	if _, ok := table.Group(ImageGroups); ok {
		t.Error("the mark is a group")
	}
}

// TestHostileNames: an image cannot write lines of its own, nor become somebody else.
func TestHostileNames(t *testing.T) {
	usual := string(Collect().Files()[PasswdFile])
	for name, field := range map[string]string{
		"line":         "a\nroot:x:0:0",
		"colon":        ":x:0:0:::\n",
		"comment":      "#a:#b",
		"mark":         "/1000:/image-groups",
		"list":         "a,b:c,d",
		"space":        " a: b",
		"long":         strings.Repeat("a", maxName+1),
		"not text":     "a\xff:b\xfe",
		"control":      "a\x1b[2J:b\x00",
		"root":         "root:root",
		"negative":     "-1:-1",
		"reserved":     fmt.Sprint(ImageGroups),
		"out of range": "99999999999999999999:99999999999999999999",
	} {
		t.Run(name, func(t *testing.T) {
			files := Collect(field).Files()
			if got := string(files[PasswdFile]); got != usual {
				t.Errorf("passwd has %q", strings.TrimPrefix(got, usual))
			}
			users, _ := parsed(t, files)
			for _, u := range users {
				if u.Uid == 0 && u.Name != "root" {
					t.Errorf("%q is the super-user", u.Name)
				}
			}
			if _, err := Parse(files[PasswdFile], files[GroupFile]); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestLimit(t *testing.T) {
	var fields []string
	for i := range 40000 {
		fields = append(fields, fmt.Sprintf("user%d:group%d", i, i), fmt.Sprint(i))
	}
	files := Collect(fields...).Files()
	for name, data := range files {
		if len(data) > MaxFile {
			t.Errorf("%s has %d bytes", name, len(data))
		}
	}
	users, groups := parsed(t, files)
	if len(users) > 2*maxNames+1 || len(groups) > maxNames+1 {
		t.Errorf("%d users, %d groups", len(users), len(groups))
	}
}

func TestParse(t *testing.T) {
	for name, passwd := range map[string]string{
		"too few fields": "a:x:1\n",
		"no number":      "a:x:b:1:::\n",
		"no group":       "a:x:1:b:::\n",
		"no name":        ":x:1:1:::\n",
		"large number":   "a:x:2147483648:1:::\n",
	} {
		if _, err := Parse([]byte(passwd), nil); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Parse(nil, []byte("a:x:1\n")); !errdefs.IsInvalidArgument(err) {
		t.Errorf("group: %v", err)
	}
	if _, err := Parse(make([]byte, MaxFile+1), nil); !errdefs.IsInvalidArgument(err) {
		t.Errorf("endless file: %v", err)
	}
}

func FuzzCollect(f *testing.F) {
	f.Add("app:crew", "1000")
	f.Add("a\nb:c:d", "/x")
	f.Fuzz(func(t *testing.T, a, b string) {
		files := Collect(a, b).Files()
		if _, err := Parse(files[PasswdFile], files[GroupFile]); err != nil {
			t.Fatal(err)
		}
		users, _ := parsed(t, files)
		for _, u := range users {
			if u.Uid == 0 && u.Name != "root" {
				t.Errorf("%q is the super-user", u.Name)
			}
		}
	})
}

func FuzzParse(f *testing.F) {
	files := Collect("app:crew", "1000").Files()
	f.Add(files[PasswdFile], files[GroupFile])
	f.Fuzz(func(t *testing.T, passwd, group []byte) {
		table, err := Parse(passwd, group)
		if err != nil {
			return
		}
		for id, name := range table.users {
			if !Reserved(id) || name == "" {
				t.Errorf("%d stands for %q", id, name)
			}
		}
	})
}
