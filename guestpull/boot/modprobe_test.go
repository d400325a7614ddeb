package boot

import (
	"errors"
	"slices"
	"testing"

	"github.com/containerd/errdefs"
)

func TestModprobe(t *testing.T) {
	list, err := parseModules([]byte(`transport required - /lib/modules/6/virtio.ko
on:bridge required - /lib/modules/6/llc.ko
on:bridge required - /lib/modules/6/bridge.ko
on:br_netfilter required - /lib/modules/6/br_netfilter.ko
`))
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		args    []string
		want    []string
		wantErr error
	}{
		"module":        {args: []string{"-q", "--", "bridge"}, want: []string{"/lib/modules/6/llc.ko", "/lib/modules/6/bridge.ko"}},
		"device":        {args: []string{"-q", "--", "rtnl-link-bridge"}, want: []string{"/lib/modules/6/llc.ko", "/lib/modules/6/bridge.ko"}},
		"dashes":        {args: []string{"-q", "--", "br-netfilter"}, want: []string{"/lib/modules/6/br_netfilter.ko"}},
		"unknown":       {args: []string{"-q", "--", "net-pf-10"}, wantErr: errdefs.ErrNotFound},
		"not on demand": {args: []string{"-q", "--", "virtio"}, wantErr: errdefs.ErrNotFound},
		"path":          {args: []string{"-q", "--", "../bridge"}, wantErr: errdefs.ErrInvalidArgument},
		"nothing":       {wantErr: errdefs.ErrInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			l := newLoader(list)
			l.insert = func(path string) error {
				got = append(got, path)
				return nil
			}
			module, err := wantedModule(test.args)
			if err == nil {
				err = loadDemanded(t.Context(), l, module)
			}
			if !errors.Is(err, test.wantErr) {
				t.Errorf("error is %v, want %v", err, test.wantErr)
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("loaded %q, want %q", got, test.want)
			}
		})
	}
}
