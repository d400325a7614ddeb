package guestboot

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/integration/guestvm"
	"github.com/coffer-project/coffer/integration/require"
	"github.com/coffer-project/coffer/owner/extension"
)

const (
	serial = "extension-test"
	// The extension's one large file has the marker many times after the head, which is far from the file system's own data.
	head, marker = "the first of it\n", "here is what the extension holds"
)

// packExtension makes an extension with a program, a file and a manifest, and returns the image and its kernel parameter.
func packExtension(t *testing.T) (image, param string) {
	t.Helper()
	mkfs := require.Program(t, "mkfs.erofs", "install erofs-utils")
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree")
	for name, content := range map[string][]byte{
		"bin/busybox":                         busybox,
		"data":                                append([]byte(head), bytes.Repeat([]byte(marker+"\n"), 1000)...),
		"etc/kata-extensions/components.toml": []byte("schema_version = 1\n[paths]\ntool = \"bin/busybox\"\n"),
	} {
		file := filepath.Join(tree, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, content, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	erofs, image := filepath.Join(dir, "erofs"), filepath.Join(dir, "image")
	if out, err := exec.Command(mkfs, "-T0", erofs, tree).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if param, err = extension.Pack(t.Context(), "test", erofs, image); err != nil {
		t.Fatal(err)
	}
	return image, param
}

// flip changes one bit of a copy of the image, where text first is.
func flip(t *testing.T, image, text string) string {
	t.Helper()
	data, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(data, []byte(text))
	if at < 0 {
		t.Fatalf("no %q in the image", text)
	}
	data[at] ^= 1
	changed := filepath.Join(t.TempDir(), "changed")
	if err := os.WriteFile(changed, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return changed
}

func TestExtension(t *testing.T) {
	image1, param := packExtension(t)
	const dir = "/run/kata-extensions/test/"
	t.Run("mounted", func(t *testing.T) {
		v := guestvm.Start(t, image, guestvm.Config{Serials: map[string]string{serial: image1}, Params: []string{param}})
		_, host := v.Connect(t)
		if got, want := ask(t, host, "extensions"), "test "+dir+"bin/busybox\nend"; got != want {
			t.Errorf("extensions: %q, want %q", got, want)
		}
		if got := ask(t, host, "cat "+dir+"data"); strings.Count(got, marker) != 1000 {
			t.Errorf("file of %d bytes", len(got))
		}
		if got := ask(t, host, "run "+dir+"bin/busybox echo it runs"); got != "it runs\n" {
			t.Errorf("program: %q", got)
		}
		if got := ask(t, host, "cat /proc/mounts"); !strings.Contains(got, "/run/kata-extensions/test erofs ro,nosuid,nodev") {
			t.Errorf("mounts: %s", got)
		}
		t.Log(ask(t, host, "phases"))
	})
	// A changed byte is found when it is read, and it alone.
	t.Run("changed data", func(t *testing.T) {
		v := guestvm.Start(t, image, guestvm.Config{Serials: map[string]string{serial: flip(t, image1, head)}, Params: []string{param}})
		_, host := v.Connect(t)
		if got := ask(t, host, "extensions"); !strings.HasSuffix(got, "end") {
			t.Errorf("extensions: %q", got)
		}
		if got := ask(t, host, "cat "+dir+"data"); !strings.Contains(got, "input/output error") {
			t.Errorf("changed file: %.100q", got)
		}
		if got := ask(t, host, "run "+dir+"bin/busybox echo it runs"); got != "it runs\n" {
			t.Errorf("program: %q", got)
		}
	})
	at := strings.Index(param, "root_hash=") + len("root_hash=")
	other := param[:at] + strings.Repeat("0", 64) + param[at+64:]
	for name, tc := range map[string]struct {
		serials map[string]string
		params  []string
		want    string
	}{
		"changed file system":     {map[string]string{serial: flip(t, image1, "\xe2\xe1\xf5\xe0")}, []string{param}, "its disk does not hold what the kernel command line promises"},
		"changed manifest":        {map[string]string{serial: flip(t, image1, "schema_version")}, []string{param}, "error: extension test: "},
		"another root hash":       {map[string]string{serial: image1}, []string{other}, "its disk does not hold what the kernel command line promises"},
		"disk without parameters": {map[string]string{serial: image1}, nil, "has no kata.extension.test.verity_params to check it by"},
		"parameters without disk": {nil, []string{param}, "no disk has the serial extension-test"},
	} {
		t.Run(name, func(t *testing.T) {
			v := guestvm.Start(t, image, guestvm.Config{Serials: tc.serials, Params: tc.params})
			_, host := v.Connect(t)
			if got := ask(t, host, "extensions"); !strings.HasPrefix(got, "error: extension test: ") || !strings.Contains(got, tc.want) {
				t.Errorf("got %q, want %q", got, tc.want)
			}
			if got := ask(t, host, "cat /proc/mounts"); strings.Contains(got, dir[:len(dir)-1]) {
				t.Errorf("still mounted: %s", got)
			}
		})
	}
}
