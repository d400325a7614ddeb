package vfio_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/shim/device/vfio/vfiotest"
)

func TestFabric(t *testing.T) {
	hopper, blackwell := vfiotest.HGXH100(), vfiotest.HGXB200()
	for name, test := range map[string]struct {
		board   []vfiotest.Function
		count   int // of the board's functions, GPUs first
		without int // of the first
		open    error
		closed  error // in a confidential VM
	}{
		"one hopper":                  {board: hopper, count: 1},
		"two hoppers":                 {board: hopper, count: 2, closed: errdefs.ErrFailedPrecondition},
		"eight hoppers":               {board: hopper, count: 8, closed: errdefs.ErrFailedPrecondition},
		"a switch too few":            {board: hopper, count: 11, open: errdefs.ErrFailedPrecondition, closed: errdefs.ErrFailedPrecondition},
		"a gpu too few":               {board: hopper, count: 12, without: 1, open: errdefs.ErrFailedPrecondition, closed: errdefs.ErrFailedPrecondition},
		"a whole hopper board":        {board: hopper, count: 12},
		"switches alone":              {board: hopper, count: 12, without: 8},
		"one blackwell":               {board: blackwell, count: 1},
		"eight blackwells":            {board: blackwell, count: 8},
		"a whole blackwell board":     {board: blackwell, count: 12},
		"four and the bridges":        {board: blackwell, count: 12, without: 4, open: errdefs.ErrFailedPrecondition, closed: errdefs.ErrFailedPrecondition},
		"a network card is no bridge": {board: append(slices.Clone(blackwell[:1]), vfiotest.NIC("0000:3b:02.1", 91)), count: 2},
		"a pro card":                  {board: vfiotest.RTXPro6000()[1:], count: 2},
	} {
		t.Run(name, func(t *testing.T) {
			tree := vfiotest.New(t, true, test.board...)
			devices := find(t, tree, tree.WriteSpec(t, "nvidia.com/pgpu", tree.Addresses(nil)[test.without:test.count]...)...)
			for confidential, want := range map[bool]error{false: test.open, true: test.closed} {
				m := manager(t, tree)
				m.Confidential = confidential
				claim, err := m.Reserve(t.Context(), owner("a"), devices)
				if !errors.Is(err, want) {
					t.Errorf("confidential %t: error is %v, want %v", confidential, err, want)
				}
				if err == nil {
					err = claim.Remove(t.Context())
				}
				if want == nil && err != nil {
					t.Error(err)
				}
			}
		})
	}
}
