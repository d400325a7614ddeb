package main

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/guestpull/attest"
	"github.com/coffer-project/coffer/guestpull/boot"
	"github.com/coffer-project/coffer/guestpull/container/reap"
	"github.com/coffer-project/coffer/guestpull/decrypt"
	"github.com/coffer-project/coffer/guestpull/extension"
	"github.com/coffer-project/coffer/guestpull/gpu"
	"github.com/coffer-project/coffer/proto/initdata"
)

// startGPUs begins to set the guest's GPUs up.
func startGPUs(ctx context.Context, m *boot.Machine, gpus *gpu.Service, extensions []*extension.Extension) {
	o, err := gpu.Machine(reap.New().Start, extensions)
	if err != nil {
		gpus.Refuse(err)
		return
	}
	o.Params, o.Inherited = m.Params.GPU, m.Inherited()
	go gpus.Run(ctx, o)
}

// errUnprotected is of a TEE whose host has given it GPUs that the host can read.
var errUnprotected = fmt.Errorf("this guest is in a TEE, and its GPUs do no confidential computing, so that the host could read what they work on: "+
	"turn the GPUs' mode on at the host (nvidia.com/cc.mode), or allow it by the line gpu.unprotected = true in the measured document's %s: %w",
	initdata.KeyCoffer, errdefs.ErrPermissionDenied)

// attestGPUs has the GPUs attested by the key broker, nil where there is none, as the measured document wants it.
func attestGPUs(s settings, document *initdata.Document, keys decrypt.KeySource) error {
	c, err := document.Coffer()
	if err != nil {
		return err
	}
	broker, _ := keys.(gpu.Attester)
	s.gpus.AttestBy(broker, unprotected(s.platform, c))
	return nil
}

// unprotected is why GPUs that do no confidential computing must not be used, nil where they may.
func unprotected(p attest.Platform, c *initdata.CofferConfig) error {
	if attest.Protects(p) && !c.GPU.Unprotected {
		return errUnprotected
	}
	return nil
}
