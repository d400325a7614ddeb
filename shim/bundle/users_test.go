package bundle

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coffer-project/coffer/proto/hostroot"
	"github.com/coffer-project/coffer/proto/volume"
)

// hostRoot writes the folder that a snapshotter offers and returns the mount that binds it.
func hostRoot(t *testing.T, files map[string][]byte) []*types.Mount {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, content, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	v := volume.Volume{VolumeType: volume.TypeImageGuestPull, Source: "registry.example/app:1", ImagePull: &volume.ImagePull{}}
	option, err := v.Option()
	if err != nil {
		t.Fatal(err)
	}
	return []*types.Mount{{Type: "bind", Source: dir, Options: []string{"rbind", "ro", option}}}
}

// idOf finds a name's number in a passwd or group file.
func idOf(t *testing.T, file []byte, name string) uint32 {
	t.Helper()
	for line := range bytes.Lines(file) {
		var id uint32
		if rest, ok := strings.CutPrefix(string(line), name+":x:"); ok {
			if _, err := fmt.Sscanf(rest, "%d", &id); err == nil {
				return id
			}
		}
	}
	t.Fatalf("%s is not in %q", name, file)
	return 0
}

// TestUsers turns back what containerd makes of a folder's names.
func TestUsers(t *testing.T) {
	files := hostroot.Collect("app:crew", "1000").Files()
	users, err := LoadUsers(hostRoot(t, files))
	if err != nil {
		t.Fatal(err)
	}
	app, crew := idOf(t, files[hostroot.PasswdFile], "app"), idOf(t, files[hostroot.GroupFile], "crew")
	primary, _ := users.table.Primary(1000)
	const mark = hostroot.ImageGroups
	tests := map[string]struct {
		in         specs.User
		name       string
		uid, gid   uint32
		groups     []uint32
		wantErr    error
		wantStrict bool
	}{
		"USER app":                      {in: specs.User{UID: app, GID: app, AdditionalGids: []uint32{app, mark}}, name: "app", uid: app, gid: app},
		"USER app, more groups":         {in: specs.User{UID: app, GID: app, AdditionalGids: []uint32{5, app, mark}}, name: "app", uid: app, gid: app, groups: []uint32{5}},
		"USER app, strict":              {in: specs.User{UID: app, GID: app, AdditionalGids: []uint32{5, app}}, name: "app", uid: app, gid: app, groups: []uint32{5}, wantStrict: true},
		"USER app:crew":                 {in: specs.User{UID: app, GID: crew, AdditionalGids: []uint32{crew, mark}}, name: "app:crew", uid: app, gid: crew},
		"USER app, RunAsGroup 7":        {in: specs.User{UID: app, GID: 7, AdditionalGids: []uint32{7, mark}}, name: "app:7", uid: app, gid: 7, groups: []uint32{7}},
		"USER 1000":                     {in: specs.User{UID: 1000, GID: primary, AdditionalGids: []uint32{primary, mark}}, uid: 1000},
		"USER 1000, RunAsGroup 0":       {in: specs.User{UID: 1000, GID: 0, AdditionalGids: []uint32{0, mark}}, name: "1000:0", uid: 1000, groups: []uint32{0}},
		"USER 1000:crew":                {in: specs.User{UID: 1000, GID: crew, AdditionalGids: []uint32{crew, mark}}, name: "1000:crew", uid: 1000, gid: crew},
		"RunAsUser 77":                  {in: specs.User{UID: 77, AdditionalGids: []uint32{0, 9}}, uid: 77, groups: []uint32{0, 9}},
		"root":                          {in: specs.User{AdditionalGids: []uint32{0, mark}}, groups: []uint32{0}},
		"root, strict":                  {in: specs.User{AdditionalGids: []uint32{0}}, groups: []uint32{0}, wantStrict: true},
		"root, RunAsGroup 5":            {in: specs.User{GID: 5, AdditionalGids: []uint32{5, mark}}, gid: 5, groups: []uint32{5}},
		"name from elsewhere":           {in: specs.User{UID: 3, Username: "bin"}, name: "bin", uid: 3, wantStrict: false},
		"reserved user without a name":  {in: specs.User{UID: 1<<31 - 1}, wantErr: errdefs.ErrInvalidArgument},
		"reserved group without a name": {in: specs.User{UID: 5, GID: app}, wantErr: errdefs.ErrInvalidArgument},
		"mark as a user":                {in: specs.User{UID: mark}, wantErr: errdefs.ErrInvalidArgument},
		"mark as the group":             {in: specs.User{UID: app, GID: mark}, wantErr: errdefs.ErrInvalidArgument},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := users.request(tc.in)
			if !errors.Is(err, tc.wantErr) {
				t.Fatalf("error %v, want %v", err, tc.wantErr)
			}
			if err != nil {
				return
			}
			if got.GetUsername() != tc.name || got.GetUID() != tc.uid || got.GetGID() != tc.gid || !slices.Equal(got.GetAdditionalGids(), tc.groups) {
				t.Errorf("got %v", got)
			}
			if strict := users.strict(tc.in, false); strict != tc.wantStrict {
				t.Errorf("strict: %v", strict)
			}
		})
	}
	if !users.strict(specs.User{UID: 77}, true) || users.strict(specs.User{UID: 77, AdditionalGids: []uint32{mark}}, true) {
		t.Error("the pod's wish counts for a user that containerd does not know, and only then")
	}
}

// TestUsersWithFirst: containerd gives an exec what the guest has told of the first process.
func TestUsersWithFirst(t *testing.T) {
	users := Users{}.WithFirst(specs.User{UID: 1000, GID: 0})
	for name, tc := range map[string]struct {
		in   specs.User
		want string
	}{
		"the first process's":  {in: specs.User{UID: 1000, AdditionalGids: []uint32{0, 7}}, want: "1000:0"},
		"with another group":   {in: specs.User{UID: 1000, GID: 7}},
		"another user":         {in: specs.User{UID: 1001}},
		"named by the request": {in: specs.User{UID: 1000, Username: "app"}, want: "app"},
	} {
		got, err := users.request(tc.in)
		if err != nil || got.GetUsername() != tc.want || got.GetUID() != tc.in.UID || !slices.Equal(got.GetAdditionalGids(), tc.in.AdditionalGids) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

// TestUsersWithAskedGroup: a number that the folder does not list may come with a group 0 that somebody wants.
func TestUsersWithAskedGroup(t *testing.T) {
	files := hostroot.Collect("1000").Files()
	users, err := LoadUsers(hostRoot(t, files))
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		in      specs.User
		unclear bool
		want    string // with the group asked for
	}{
		"a number":             {in: specs.User{UID: 77}, unclear: true, want: "77:0"},
		"with another group":   {in: specs.User{UID: 77, GID: 7}},
		"the super-user":       {},
		"listed":               {in: specs.User{UID: 1000}, want: "1000:0"},
		"named by the request": {in: specs.User{UID: 77, Username: "app"}, want: "app"},
	} {
		if got := users.Unclear(tc.in); got != tc.unclear {
			t.Errorf("%s: unclear %t", name, got)
		}
		if got, err := users.WithAskedGroup().request(tc.in); err != nil || got.GetUsername() != tc.want {
			t.Errorf("%s: %v, %v; want %q", name, got, err, tc.want)
		}
	}
}

func TestLoadUsers(t *testing.T) {
	good := hostroot.Collect().Files()
	for name, tc := range map[string]struct {
		rootfs  []*types.Mount
		wantErr error
	}{
		"a root without names":    {rootfs: hostRoot(t, nil)},
		"no volume":               {rootfs: []*types.Mount{{Type: "overlay", Source: "/"}}},
		"not a passwd file":       {rootfs: hostRoot(t, map[string][]byte{hostroot.PasswdFile: []byte("x"), hostroot.GroupFile: good[hostroot.GroupFile]}), wantErr: errdefs.ErrInvalidArgument},
		"no group file":           {rootfs: hostRoot(t, map[string][]byte{hostroot.PasswdFile: good[hostroot.PasswdFile]}), wantErr: os.ErrNotExist},
		"a passwd file too large": {rootfs: hostRoot(t, map[string][]byte{hostroot.PasswdFile: make([]byte, hostroot.MaxFile+1), hostroot.GroupFile: nil}), wantErr: errdefs.ErrInvalidArgument},
	} {
		if _, err := LoadUsers(tc.rootfs); !errors.Is(err, tc.wantErr) {
			t.Errorf("%s: %v, want %v", name, err, tc.wantErr)
		}
	}
	if got, err := (Users{}).request(specs.User{UID: 5, GID: 6, AdditionalGids: []uint32{7}}); err != nil || got.GetUID() != 5 || got.GetGID() != 6 || len(got.GetAdditionalGids()) != 1 {
		t.Errorf("without names: %v, %v", got, err)
	}
}
