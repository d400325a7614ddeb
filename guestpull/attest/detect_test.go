package attest

import (
	"context"
	"errors"
	"io/fs"
	"testing"
	"testing/fstest"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/guestpull/attest/attesttest"
	"github.com/coffer-project/coffer/proto/kbs"
)

func machine(flags string, paths ...string) fstest.MapFS {
	root := fstest.MapFS{"proc/cpuinfo": {Data: []byte("processor\t: 0\nvmx flags\t: tdx_guest\n" + flags + "\nbugs\t\t:\n\nprocessor\t: 1\nflags\t\t: tdx_guest\n")}}
	for _, path := range paths {
		root[path] = &fstest.MapFile{Mode: fs.ModeDir | 0o755}
	}
	return root
}

func TestDetect(t *testing.T) {
	broken := errors.New("no drivers")
	for name, tc := range map[string]struct {
		root    fstest.MapFS
		ready   error
		kernel  string // the driver
		want    kbs.TEE
		wantErr error
	}{
		"no TEE":              {machine("flags\t\t: fpu sse"), broken, "", kbs.TEESample, nil}, // and nothing is waited for
		"SNP":                 {machine("flags\t\t: fpu", "sys/devices/platform/sev-guest"), nil, "sev_guest", kbs.TEESNP, nil},
		"TDX":                 {machine("flags\t\t: fpu tdx_guest sse"), nil, "tdx_guest", kbs.TEETDX, nil},
		"SNP without driver":  {machine("flags\t\t: fpu", "sys/devices/platform/sev-guest"), nil, "", "", errdefs.ErrFailedPrecondition},
		"TDX without driver":  {machine("flags\t\t: tdx_guest"), nil, "", "", errdefs.ErrFailedPrecondition},
		"other driver":        {machine("flags\t\t: tdx_guest"), nil, "sev_guest", "", errdefs.ErrFailedPrecondition},
		"drivers not loaded":  {machine("flags\t\t: tdx_guest"), broken, "tdx_guest", "", broken},
		"processor unknown":   {fstest.MapFS{}, nil, "", "", fs.ErrNotExist},
		"processor of no x86": {fstest.MapFS{"proc/cpuinfo": {Data: []byte("Features\t: fp\n")}}, nil, "", "", errdefs.ErrFailedPrecondition},
	} {
		t.Run(name, func(t *testing.T) {
			kernel := attesttest.New(tc.kernel, nil)
			waited := false
			got, err := detect(t.Context(), tc.root, func(context.Context) error { waited = true; return tc.ready }, func(tee kbs.TEE) (*TSM, error) {
				return NewTSMWith(tee, kernel, "", nil)
			})
			if !errors.Is(err, tc.wantErr) {
				t.Fatalf("error: %v", err)
			}
			if err == nil && got.TEE() != string(tc.want) {
				t.Errorf("TEE %s, want %s", got.TEE(), tc.want)
			}
			if tc.want == kbs.TEESample && waited {
				t.Error("a machine without TEE waited for drivers")
			}
			if n := kernel.Entries(); n != 0 {
				t.Errorf("%d entries are left in configfs", n)
			}
		})
	}
}
