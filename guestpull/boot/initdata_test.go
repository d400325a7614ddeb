package boot

import (
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/coffer-project/coffer/proto/initdata"
)

const document = "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"aa.toml\" = \"hello\"\n"

// disks makes a /sys/block and a /dev with the disks.
func disks(t *testing.T, contents map[string][]byte) (sysBlock, dev string) {
	t.Helper()
	sysBlock, dev = t.TempDir(), t.TempDir()
	for name, content := range contents {
		if err := os.Mkdir(filepath.Join(sysBlock, name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dev, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return sysBlock, dev
}

func TestInitData(t *testing.T) {
	good, err := initdata.EncodeDisk([]byte(document))
	if err != nil {
		t.Fatal(err)
	}
	damaged := slices.Clone(good)
	damaged[40] ^= 1
	sum := sha256.Sum256([]byte(document))
	right := InitDataDigest{Algorithm: "sha256", Sum: sum[:]}
	tests := map[string]struct {
		disks     map[string][]byte
		want      InitDataDigest
		wantBound bool
		wantNone  bool
		wantErr   error
	}{
		"none":             {disks: map[string][]byte{"vda": make([]byte, 512), "loop0": good}, wantNone: true},
		"unbound":          {disks: map[string][]byte{"vda": []byte("x"), "vdb": good}},
		"bound":            {disks: map[string][]byte{"sda": good}, want: right, wantBound: true},
		"missing":          {want: right, wantErr: errdefs.ErrFailedPrecondition},
		"another digest":   {disks: map[string][]byte{"vda": good}, want: InitDataDigest{"sha256", make([]byte, 32)}, wantErr: errdefs.ErrFailedPrecondition},
		"another sum":      {disks: map[string][]byte{"vda": good}, want: InitDataDigest{"sha384", sum[:]}, wantErr: errdefs.ErrFailedPrecondition},
		"two":              {disks: map[string][]byte{"vda": good, "vdb": good}, wantErr: errdefs.ErrFailedPrecondition},
		"damaged":          {disks: map[string][]byte{"vda": damaged}, wantErr: errdefs.ErrFailedPrecondition},
		"only the magic":   {disks: map[string][]byte{"vda": []byte("initdata")}, wantErr: errdefs.ErrFailedPrecondition},
		"endless, by word": {disks: map[string][]byte{"vda": []byte("initdata\xff\xff\xff\xff\xff\xff\xff\x7fxxxx")}, wantErr: errdefs.ErrFailedPrecondition},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			found, err := findDisks(disks(t, tt.disks))
			if err != nil {
				t.Fatal(err)
			}
			got, err := readInitData(found, tt.want)
			if !errors.Is(err, tt.wantErr) {
				t.Fatalf("error %v, want %v", err, tt.wantErr)
			}
			if tt.wantErr != nil || tt.wantNone {
				if got != nil {
					t.Errorf("got %+v", got)
				}
				return
			}
			if string(got.Raw) != document || got.Bound != tt.wantBound || got.Document.Data["aa.toml"] != "hello" {
				t.Errorf("got %+v", got)
			}
		})
	}
}

func TestLogLine(t *testing.T) {
	entry := &log.Entry{Level: log.InfoLevel, Message: "pull\nimage", Data: log.Fields{"b": "x\ncoffer-guest: ready 1 ms", "a": strings.Repeat("y", 300)}}
	got, err := lineFormatter{}.Format(entry)
	if err != nil {
		t.Fatal(err)
	}
	want := "coffer-guest: info pull image a=" + strings.Repeat("y", 256) + "... b=x coffer-guest: ready 1 ms\n"
	if string(got) != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestGuard(t *testing.T) {
	errServe := errors.New("serve")
	tests := map[string]struct {
		f    func() error
		want string
	}{
		"error":     {func() error { return errServe }, "serve"},
		"panic":     {func() error { panic("no") }, "panic: no"},
		"nil deref": {func() error { var p *Params; p.PipeSize = 1; return nil }, "panic: runtime error: invalid memory address or nil pointer dereference"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if err := guard(tt.f); err == nil || err.Error() != tt.want {
				t.Errorf("got %v, want %s", err, tt.want)
			}
		})
	}
}

func TestInitOnlyAsPID1(t *testing.T) {
	if _, err := Init(t.Context()); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("got %v", err)
	}
}
