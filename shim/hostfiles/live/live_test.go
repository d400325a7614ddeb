package live

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/emptypb"

	agentpb "github.com/coffer-project/coffer/proto/agent"
	"github.com/coffer-project/coffer/shim/agent"
	"github.com/coffer-project/coffer/shim/agent/agenttest"
	"github.com/coffer-project/coffer/shim/hostfiles"
)

const guestDir = "/run/kata-containers/shared/containers/c-0123456789abcdef-settings"

// volume is a folder of the host that the test switches as the kubelet does.
type volume struct {
	dir     string
	version int
}

func newVolume(t *testing.T) *volume {
	t.Helper()
	v := &volume{dir: filepath.Join(t.TempDir(), "kubernetes.io~configmap", "settings")}
	must(t, os.MkdirAll(v.dir, 0o755))
	return v
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// write prepares the next version and returns its name.
func (v *volume) write(t *testing.T, content map[string]string) string {
	t.Helper()
	v.version++
	name := fmt.Sprintf("..2026.%d", v.version)
	must(t, os.Mkdir(filepath.Join(v.dir, name), 0o755))
	for key, value := range content {
		must(t, os.WriteFile(filepath.Join(v.dir, name, key), []byte(value), 0o640))
	}
	return name
}

// switchTo makes a version the current one, and the old one go.
func (v *volume) switchTo(t *testing.T, name string, keys ...string) {
	t.Helper()
	old, _ := os.Readlink(filepath.Join(v.dir, dataLink)) // none at first
	must(t, os.Symlink(name, filepath.Join(v.dir, "..data_tmp")))
	must(t, os.Rename(filepath.Join(v.dir, "..data_tmp"), filepath.Join(v.dir, dataLink)))
	entries, err := os.ReadDir(v.dir)
	must(t, err)
	for _, entry := range entries {
		if !strings.HasPrefix(entry.Name(), "..") && !slices.Contains(keys, entry.Name()) {
			must(t, os.Remove(filepath.Join(v.dir, entry.Name())))
		}
	}
	for _, key := range keys {
		if err := os.Symlink("..data/"+key, filepath.Join(v.dir, key)); !errors.Is(err, os.ErrExist) {
			must(t, err)
		}
	}
	if old != "" {
		must(t, os.RemoveAll(filepath.Join(v.dir, old)))
	}
}

func (v *volume) update(t *testing.T, content map[string]string) {
	t.Helper()
	v.switchTo(t, v.write(t, content), slices.Sorted(maps.Keys(content))...)
}

func (v *volume) copied() hostfiles.Volume {
	return hostfiles.Volume{HostPath: v.dir, GuestPath: guestDir}
}

func connect(t *testing.T, options ...agenttest.Option) (*agenttest.Guest, *agent.Client) {
	t.Helper()
	guest := agenttest.New(t, options...)
	client, err := agent.Connect(t.Context(), guest.Dial, agent.Options{})
	must(t, err)
	t.Cleanup(func() { _ = client.Close() })
	return guest, client
}

// tree is what the guest has of the volume, as text by name.
func tree(guest *agenttest.Guest) map[string]string {
	out := map[string]string{}
	for name, file := range guest.Files() {
		rel, below := strings.CutPrefix(name, guestDir+"/")
		if !below {
			continue
		}
		switch file.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			out[rel] = "folder"
		case unix.S_IFLNK:
			out[rel] = "-> " + file.Data
		default:
			out[rel] = file.Data
		}
	}
	return out
}

func checkTree(t *testing.T, guest *agenttest.Guest, want map[string]string) {
	t.Helper()
	if got := tree(guest); !maps.Equal(got, want) {
		t.Errorf("the guest has\n%q, want\n%q", got, want)
	}
}

func TestSwitch(t *testing.T) {
	v := newVolume(t)
	v.update(t, map[string]string{"a": "1", "b": "1"})
	guest, client := connect(t)
	c, err := Copy(t.Context(), client, v.copied(), hostfiles.Limits{})
	must(t, err)
	checkTree(t, guest, map[string]string{
		"..2026.1": "folder", "..2026.1/a": "1", "..2026.1/b": "1", "..data": "-> ..2026.1", "a": "-> ..data/a", "b": "-> ..data/b",
	})
	calls := len(guest.Calls())
	must(t, c.sync(t.Context()))
	if now := len(guest.Calls()); now != calls {
		t.Errorf("%d calls for a volume that has not changed", now-calls)
	}
	v.update(t, map[string]string{"a": "2", "c": "2"})
	must(t, c.sync(t.Context()))
	checkTree(t, guest, map[string]string{
		"..2026.2": "folder", "..2026.2/a": "2", "..2026.2/c": "2", "..data": "-> ..2026.2", "a": "-> ..data/a", "c": "-> ..data/c",
	})
	checkOrder(t, guest.Calls()[calls:])
	t.Run("key comes back", func(t *testing.T) {
		v.update(t, map[string]string{"b": "3"})
		must(t, c.sync(t.Context()))
		checkTree(t, guest, map[string]string{
			"..2026.3": "folder", "..2026.3/b": "3", "..data": "-> ..2026.3", "b": "-> ..data/b",
		})
	})
}

// checkOrder wants everything of the new version before the switch, and the old version to go last.
func checkOrder(t *testing.T, calls []agenttest.Call) {
	t.Helper()
	switched := -1
	for i, call := range calls {
		copied, isCopy := call.Request.(*agentpb.CopyFileRequest)
		switch {
		case isCopy && strings.HasSuffix(copied.GetPath(), "/..data"):
			switched = i
		case isCopy && strings.Contains(copied.GetPath(), "/..2026") && switched >= 0:
			t.Errorf("%s came after the switch", copied.GetPath())
		case !isCopy && (switched < 0 || i != len(calls)-1):
			t.Errorf("%s is call %d of %d, the switch %d", call.Method, i, len(calls), switched)
		}
	}
}

// TestStockGuest cannot remove: links of keys stay, and old versions become a link that takes no memory.
func TestStockGuest(t *testing.T) {
	v := newVolume(t)
	v.update(t, map[string]string{"a": "1", "gone": "1"})
	guest, client := connect(t, agenttest.WithStockAgent())
	c, err := Copy(t.Context(), client, v.copied(), hostfiles.Limits{})
	must(t, err)
	v.update(t, map[string]string{"a": "2"})
	must(t, c.sync(t.Context()))
	checkTree(t, guest, map[string]string{
		"..2026.1": "-> ..removed", "..2026.2": "folder", "..2026.2/a": "2", "..data": "-> ..2026.2",
		"a": "-> ..data/a", "gone": "-> ..data/gone",
	})
}

// racing switches the volume while a file of it is on its way.
type racing struct {
	*agent.Client

	onFile func(path string)
}

func (r *racing) CopyFile(ctx context.Context, q *agentpb.CopyFileRequest) (*emptypb.Empty, error) {
	if q.GetFileMode()&unix.S_IFMT == unix.S_IFREG {
		r.onFile(q.GetPath())
	}
	return r.Client.CopyFile(ctx, q)
}

func TestSwitchedWhileCopied(t *testing.T) {
	for name, test := range map[string]struct {
		switches int
		want     error
	}{
		"once": {1, nil}, "until the last try": {maxSwitches - 1, nil}, "without an end": {1 << 20, errSwitched},
	} {
		t.Run(name, func(t *testing.T) {
			v := newVolume(t)
			v.update(t, map[string]string{"a": "0", "b": "0"})
			guest, client := connect(t)
			switches := 0
			r := &racing{Client: client, onFile: func(path string) {
				if strings.HasSuffix(path, "/a") && switches < test.switches {
					switches++
					v.update(t, map[string]string{"a": fmt.Sprint(switches), "b": fmt.Sprint(switches)})
				}
			}}
			_, err := Copy(t.Context(), r, v.copied(), hostfiles.Limits{})
			if !errors.Is(err, test.want) {
				t.Fatalf("error %v, want %v", err, test.want)
			}
			got := tree(guest)
			if test.want != nil {
				if len(got) != 0 {
					t.Errorf("left in the guest: %q", got)
				}
				return
			}
			version := got["..data"][len("-> "):]
			if a, b := got[version+"/a"], got[version+"/b"]; a != fmt.Sprint(switches) || a != b || len(got) != 6 {
				t.Errorf("a is %q and b %q after %d switches: %q", a, b, switches, got)
			}
		})
	}
}

func TestHostile(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	must(t, os.MkdirAll(secret, 0o700))
	must(t, os.WriteFile(filepath.Join(secret, "key"), []byte("secret"), 0o600))
	for name, test := range map[string]struct {
		data string
		want error
	}{
		"elsewhere": {secret, errdefs.ErrFailedPrecondition}, "up": {"../..", errdefs.ErrFailedPrecondition},
		"the parent": {"..", errdefs.ErrFailedPrecondition}, "itself": {"..data", errdefs.ErrFailedPrecondition},
		"a key": {"key", errdefs.ErrFailedPrecondition}, "nothing": {"..missing", errdefs.ErrNotFound},
		"a link out": {"..out", errdefs.ErrFailedPrecondition},
	} {
		t.Run(name, func(t *testing.T) {
			v := newVolume(t)
			must(t, os.Symlink(secret, filepath.Join(v.dir, "..out")))
			must(t, os.Symlink(test.data, filepath.Join(v.dir, dataLink)))
			guest, client := connect(t)
			if _, err := Copy(t.Context(), client, v.copied(), hostfiles.Limits{}); !errors.Is(err, test.want) {
				t.Errorf("error %v, want %v", err, test.want)
			}
			if got := tree(guest); len(got) != 0 {
				t.Errorf("the guest has %q", got)
			}
		})
	}
}

// keep starts a keeper with fast times for a copy of the volume.
func keep(t *testing.T, client *agent.Client, v *volume, fast times) *Keeper {
	t.Helper()
	c, err := Copy(t.Context(), client, v.copied(), hostfiles.Limits{})
	must(t, err)
	k := NewKeeper(t.Context())
	k.times = fast
	k.Keep("c", []*Volume{c})
	t.Cleanup(func() { k.Forget("c") })
	return k
}

// eventually repeats a check until it holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline, tick := time.After(time.Minute), time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("in vain: ", what)
		}
	}
}

// awaitKey waits until the guest reads value.
func awaitKey(t *testing.T, guest *agenttest.Guest, value string) {
	t.Helper()
	eventually(t, "the guest reads "+value, func() bool {
		got := tree(guest)
		return got["..data"] != "" && got[got["..data"][len("-> "):]+"/key"] == value
	})
}

// onlyEvents never looks at volumes without an event, onlyLooks does little else.
var (
	onlyEvents = times{settle: time.Millisecond, recheck: time.Hour, blind: time.Hour}
	onlyLooks  = times{settle: time.Millisecond, recheck: 10 * time.Millisecond, blind: 10 * time.Millisecond}
)

func TestKeeper(t *testing.T) {
	v := newVolume(t)
	v.update(t, map[string]string{"key": "1"})
	guest, client := connect(t)
	k := keep(t, client, v, onlyEvents)
	for value := 2; value < 5; value++ {
		v.update(t, map[string]string{"key": fmt.Sprint(value)})
		awaitKey(t, guest, fmt.Sprint(value))
	}
	t.Run("forgotten", func(t *testing.T) {
		other := newVolume(t)
		other.update(t, map[string]string{"key": "x"})
		marker := other.copied()
		marker.GuestPath += "-2"
		k.Forget("c")
		v.update(t, map[string]string{"key": "lost"})
		// What is copied after the switch shows that the keeper has gone on without it.
		c, err := Copy(t.Context(), client, marker, hostfiles.Limits{})
		must(t, err)
		k.Keep("d", []*Volume{c})
		other.update(t, map[string]string{"key": "y"})
		eventually(t, "the other volume follows", func() bool {
			got, _ := guest.File(marker.GuestPath + "/..2026.2/key")
			return string(got) == "y"
		})
		if got := tree(guest)["..2026.4/key"]; got != "4" {
			t.Errorf("the copy that was forgotten is %q", tree(guest))
		}
		k.Forget("d")
	})
}

// TestReplacedFolder takes the folder away under the watch, as a mount over it would: inotify sees the old one only.
func TestReplacedFolder(t *testing.T) {
	v := newVolume(t)
	v.update(t, map[string]string{"key": "1"})
	guest, client := connect(t)
	keep(t, client, v, onlyLooks)
	must(t, os.Rename(v.dir, v.dir+".old"))
	must(t, os.Mkdir(v.dir, 0o755))
	v.update(t, map[string]string{"key": "2"})
	awaitKey(t, guest, "2")
	v.update(t, map[string]string{"key": "3"})
	awaitKey(t, guest, "3")
}

// TestGuestFails makes the guest refuse for a while.
func TestGuestFails(t *testing.T) {
	v := newVolume(t)
	v.update(t, map[string]string{"key": "1"})
	guest, client := connect(t)
	keep(t, client, v, onlyLooks)
	var refused atomic.Int32
	failed := make(chan struct{})
	guest.Intercept("CopyFile", func(context.Context) error {
		if refused.Add(1) == 3 {
			close(failed)
		}
		return errdefs.ErrResourceExhausted
	})
	v.update(t, map[string]string{"key": "2"})
	<-failed
	if got := tree(guest); got["..data"] != "-> ..2026.1" || got["..2026.1/key"] != "1" {
		t.Errorf("the guest has %q", got)
	}
	guest.Intercept("CopyFile", nil)
	awaitKey(t, guest, "2")
}

// TestManySwitches: however often a volume is switched, the copy follows at its own pace and ends with the last version.
func TestManySwitches(t *testing.T) {
	v := newVolume(t)
	v.update(t, map[string]string{"key": "0"})
	guest, client := connect(t)
	keep(t, client, v, times{settle: 20 * time.Millisecond, pace: 200 * time.Millisecond, recheck: time.Hour, blind: time.Hour})
	const switches = 300
	for n := 1; n <= switches; n++ {
		v.update(t, map[string]string{"key": fmt.Sprint(n)})
	}
	awaitKey(t, guest, fmt.Sprint(switches))
	copies := 0
	for _, call := range guest.Calls("CopyFile") {
		if strings.HasSuffix(call.Request.(*agentpb.CopyFileRequest).GetPath(), "/..data") {
			copies++
		}
	}
	if copies > switches/2 {
		t.Errorf("%d copies of %d versions", copies, switches)
	}
}

// TestNothingIsKept: a keeper without volumes has neither a goroutine nor an inotify instance.
func TestNothingIsKept(t *testing.T) {
	v := newVolume(t)
	v.update(t, map[string]string{"key": "1"})
	guest, client := connect(t)
	k := keep(t, client, v, onlyEvents)
	v.update(t, map[string]string{"key": "2"})
	awaitKey(t, guest, "2")
	k.Forget("c")
	eventually(t, "the keeper's goroutine ends", func() bool {
		k.mu.Lock()
		defer k.mu.Unlock()
		return k.changed == nil
	})
}
