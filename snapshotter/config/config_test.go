package config

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"
)

// The file that is printed, the sample in the tree and the defaults in the program are the same.
func TestDefaultText(t *testing.T) {
	c, err := Parse([]byte(DefaultText()))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(c, Default()) {
		t.Fatalf("the text says %+v, the program %+v", c, Default())
	}
	sample, err := os.ReadFile(filepath.Join("..", "..", "contrib", "config", "snapshotter.toml"))
	if err != nil {
		t.Fatal(err)
	}
	if string(sample) != DefaultText() {
		t.Fatal("contrib/config/snapshotter.toml differs from \"coffer-snapshotter config default\": print it there again")
	}
	// Complete: every key of the structure is in the text.
	var text, all map[string]any
	if err := toml.Unmarshal([]byte(DefaultText()), &text); err != nil {
		t.Fatal(err)
	}
	raw, err := toml.Marshal(Default())
	if err != nil {
		t.Fatal(err)
	}
	if err := toml.Unmarshal(raw, &all); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(text, all) {
		t.Fatalf("the text has %v, the structure %v", text, all)
	}
}

func TestParse(t *testing.T) {
	tests := map[string]struct {
		text string
		want func(*Config)
		// wantFaults are in the error, all at once.
		wantFaults []string
	}{
		"empty file": {want: func(*Config) {}},
		"some keys": {
			text: "root = '/x'\n[images]\npassthrough = []\nwithout_reference = 'passthrough'\n",
			want: func(c *Config) {
				c.Root = "/x"
				c.Images.Passthrough, c.Images.WithoutReference = []string{}, "passthrough"
			},
		},
		"all faults at once": {
			text: `
version = 2
root = "relative"
address = 3
platform = "a/b/c/d/e"
spare = true
[images]
passthrough = ["ok", "", "a b"]
without_reference = "perhaps"
passthru = []
[node_default]
address = "relative.sock"
root = "relative-too"
guest = ["c d"]
[overlay]
mount_options = ["lowerdir=/x", "a,b"]
[log]
level = "loud"
format = "xml"
[unknown]
`,
			wantFaults: []string{
				"version: 2", `root: "relative"`, "address: value 3", "platform: ", "spare: no such key", `pattern ""`, `pattern "a b"`,
				"images.without_reference: ", "images.passthru: no such key",
				`node_default.address: "relative.sock"`, `node_default.root: "relative-too"`, "node_default.guest: pattern \"c d\"", `"lowerdir=/x"`, `"a,b"`, "log.level: ", "log.format: ", "unknown: no such key",
			},
		},
		"not TOML":          {text: "root = \n", wantFaults: []string{"line 1"}},
		"table for a value": {text: "[root]\nx = 1\n", wantFaults: []string{"root.x: "}},
		"value for a table": {text: "images = 1\n", wantFaults: []string{"images: value 1"}},
		"root is the root":  {text: "root = '/'\n", wantFaults: []string{`root: "/"`}},
		"root with a colon": {text: "root = '/a:b'\n", wantFaults: []string{"root: "}},
		"one state for both": {
			text:       "[node_default]\nroot = '/var/lib/coffer-snapshotter'\naddress = '/run/coffer-snapshotter/snapshotter.sock'\n",
			wantFaults: []string{"node_default.root: ", "node_default.address: ", "each needs its own"},
		},
		"address is too long": {text: "address = '/" + strings.Repeat("a", 107) + "'\n", wantFaults: []string{"address: "}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := Parse([]byte(tc.text))
			if tc.wantFaults == nil {
				want := Default()
				tc.want(&want)
				if err != nil || !reflect.DeepEqual(got, want) {
					t.Fatalf("got %+v, %v; want %+v", got, err, want)
				}
				return
			}
			if !errors.Is(err, errdefs.ErrInvalidArgument) {
				t.Fatalf("got %v, want invalid argument", err)
			}
			for _, fault := range tc.wantFaults {
				if !strings.Contains(err.Error(), fault) {
					t.Errorf("%q is not in the error:\n%v", fault, err)
				}
			}
		})
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	if _, err := Load(filepath.Join(dir, "missing")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file gave %v", err)
	}
	big := filepath.Join(dir, "big")
	if err := os.WriteFile(big, make([]byte, maxFile+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(big); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("a huge file gave %v", err)
	}
	faulty := filepath.Join(dir, "faulty")
	if err := os.WriteFile(faulty, []byte("x = 1"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(faulty); err == nil || !strings.Contains(err.Error(), faulty) {
		t.Errorf("the error does not name the file: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(DefaultText()))
	f.Add([]byte("a.b.c = [{x=1}]\n[[images]]\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := Parse(text)
		if err == nil && c.Validate() != nil {
			t.Fatalf("accepted what is not valid: %+v", c)
		}
	})
}

func TestOpen(t *testing.T) {
	c := Default()
	c.Root = filepath.Join(t.TempDir(), "state")
	c.Platform = "linux/arm64"
	s, err := c.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	c.Images.WithoutReference = "perhaps"
	if _, err := c.Open(t.Context()); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Fatalf("got %v", err)
	}
}

func TestOpenNodeDefault(t *testing.T) {
	c := Default()
	if s, err := c.OpenNodeDefault(t.Context()); s != nil || err != nil {
		t.Fatalf("without an address: %v, %v", s, err)
	}
	c.NodeDefault.Root, c.NodeDefault.Address = filepath.Join(t.TempDir(), "state"), "/x"
	s, err := c.OpenNodeDefault(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	c.NodeDefault.Guest = []string{""}
	if _, err := c.OpenNodeDefault(t.Context()); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Fatalf("got %v", err)
	}
}
