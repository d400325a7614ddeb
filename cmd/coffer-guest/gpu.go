package main

import (
	"context"

	"github.com/coffer-project/coffer/guestpull/boot"
	"github.com/coffer-project/coffer/guestpull/container/reap"
	"github.com/coffer-project/coffer/guestpull/decrypt"
	"github.com/coffer-project/coffer/guestpull/extension"
	"github.com/coffer-project/coffer/guestpull/gpu"
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

// attestGPUs has the GPUs attested by the key broker, nil where there is none.
func attestGPUs(gpus *gpu.Service, keys decrypt.KeySource) {
	broker, _ := keys.(gpu.Attester)
	gpus.AttestBy(broker)
}
