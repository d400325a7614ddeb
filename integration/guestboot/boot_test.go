package guestboot

import (
	"encoding/hex"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/integration/guestvm"
	"github.com/coffer-project/coffer/owner/guestimage"
	"github.com/coffer-project/coffer/proto/initdata"
)

func TestBoot(t *testing.T) {
	v := guestvm.Start(t, image, guestvm.Config{Params: []string{"agent.trace=1"}})
	_, host := v.Connect(t)
	pivoted := ask(t, host, "pivot")
	t.Log(v.WaitLine(t, "coffer-guest: pid 1 started"))
	t.Log(v.WaitLine(t, "coffer-guest: ready"))
	t.Log("microseconds per step:\n" + ask(t, host, "phases"))
	v.WaitLine(t, "kernel parameter has no effect in this guest name=agent.trace")

	t.Run("pivot_root works", func(t *testing.T) {
		if pivoted != "pivoted\n" {
			t.Errorf("got %q", pivoted)
		}
	})
	files := map[string]string{
		"/sys/fs/cgroup/cgroup.subtree_control": `(?s)cpuset.*cpu.*io.*memory.*pids`,
		"/proc/mounts":                          `(?s)run /run tmpfs rw.*devpts.*mqueue.*tmp /tmp tmpfs rw,nosuid,nodev.*securityfs`,
		"/proc/sys/kernel/hostname":             `^coffer\n$`,
		"/proc/self/limits":                     `Max open files +1048576 +1048576`,
		"/sys/class/net/lo/flags":               `^0x9\n$`,
		"/proc/modules":                         `(?s)overlay.*virtio_net.*virtio_blk`,
	}
	for name, want := range files {
		t.Run(name, func(t *testing.T) {
			if got := ask(t, host, "cat "+name); !regexp.MustCompile(want).MatchString(got) {
				t.Errorf("got %q, want a match of %q", got, want)
			}
		})
	}
	t.Run("storage modules load on demand", func(t *testing.T) {
		if strings.Contains(ask(t, host, "cat /proc/modules"), "dm_crypt") {
			t.Error("dm_crypt was loaded at boot")
		}
		if got := ask(t, host, "stage storage"); got != "loaded" {
			t.Fatal(got)
		}
		if !strings.Contains(ask(t, host, "cat /proc/modules"), "dm_crypt") {
			t.Error("dm_crypt is not loaded")
		}
	})
	t.Run("power off", func(t *testing.T) {
		if _, err := tryAsk(t, host, "poweroff"); err == nil {
			t.Error("the guest answered after power off")
		}
		if got, want := v.WaitExit(t), "coffer-guest: power off"; got != want {
			t.Errorf("last line %q, want %q", got, want)
		}
	})
}

func TestFatal(t *testing.T) {
	tests := map[string]struct {
		config  guestvm.Config
		command string
		want    string
	}{
		"unknown parameter": {
			config: guestvm.Config{Params: []string{"coffer.debug=1"}},
			want:   "coffer-guest: fatal: boot step params: kernel parameter coffer.debug is unknown to this guest: invalid argument",
		},
		"bzImage, server fails": {
			config:  guestvm.Config{Kernel: guestimage.VmlinuzName},
			command: "fail",
			want:    "coffer-guest: fatal: asked to; fail",
		},
		"server panics": {
			command: "panic",
			want:    "coffer-guest: fatal: panic: asked to panic",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			v := guestvm.Start(t, image, tt.config)
			if tt.command != "" {
				_, host := v.Connect(t)
				if _, err := tryAsk(t, host, tt.command); err == nil {
					t.Error("the guest answered")
				}
			}
			if got := v.WaitExit(t); got != tt.want {
				t.Errorf("last line %q, want %q", got, tt.want)
			}
		})
	}
}

func TestInitData(t *testing.T) {
	raw := []byte("version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"aa.toml\" = \"hello\"\n")
	const sum = "{SUM}"
	disk := filepath.Join(t.TempDir(), "initdata")
	encoded, err := initdata.EncodeDisk(raw)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(disk, encoded, 0o600); err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(other, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	hexSum := hexDigest(t, raw)
	tests := map[string]struct {
		disks []string
		param string
		want  string
	}{
		"bound":        {[]string{other, disk}, "coffer.initdata_digest=sha256:" + sum, "sha256:" + sum + " bound=true aa=hello"},
		"wrong digest": {[]string{disk}, "coffer.initdata_digest=sha256:" + strings.Repeat("00", 32), "error: initdata has another digest than the kernel command line asks for: failed precondition"},
		"two disks":    {[]string{disk, disk}, "", "error: 2 initdata disks instead of one: failed precondition"},
		"no disk":      {nil, "coffer.initdata_digest=sha256:" + sum, "error: no initdata disk, but the kernel command line asks for one: failed precondition"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			fill := strings.NewReplacer(sum, hexSum)
			v := guestvm.Start(t, image, guestvm.Config{Disks: tt.disks, Params: []string{fill.Replace(tt.param)}})
			_, host := v.Connect(t)
			if got, want := ask(t, host, "initdata"), fill.Replace(tt.want); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
}

func hexDigest(t *testing.T, raw []byte) string {
	t.Helper()
	algorithm, sum, err := initdata.Digest(raw)
	if err != nil || algorithm != "sha256" {
		t.Fatal(algorithm, err)
	}
	return hex.EncodeToString(sum)
}
