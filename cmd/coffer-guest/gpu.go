package main

import (
	"context"

	"github.com/coffer-project/coffer/guestpull/boot"
	"github.com/coffer-project/coffer/guestpull/container/reap"
	"github.com/coffer-project/coffer/guestpull/decrypt"
	"github.com/coffer-project/coffer/guestpull/extension"
	"github.com/coffer-project/coffer/guestpull/gpu"
)

// startGPUs begins to set the guest's GPUs up; keys, nil where the document names no broker, is who attests it.
func startGPUs(ctx context.Context, m *boot.Machine, gpus *gpu.Service, extensions []*extension.Extension, keys decrypt.KeySource) {
	o, err := gpu.Machine(reap.New().Start, extensions)
	if err != nil {
		gpus.Refuse(err)
		return
	}
	o.Params, o.Inherited = m.Params.GPU, m.Inherited()
	if broker, is := keys.(tokens); is {
		o.Attester = attester{broker}
	}
	go gpus.Run(ctx, o)
}

// tokens is a key broker that attests guests.
type tokens interface {
	Token(ctx context.Context) (token string, key []byte, err error)
}

// attester is the broker's handshake, which a token needs.
type attester struct{ broker tokens }

// Attest implements gpu.Attester.
func (a attester) Attest(ctx context.Context) error {
	_, key, err := a.broker.Token(ctx)
	clear(key) // nobody asks for anything with it
	return err
}
