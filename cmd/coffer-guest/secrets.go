package main

import (
	"context"
	"fmt"

	"github.com/coffer-project/coffer/guestpull/secret"
	"github.com/coffer-project/coffer/proto/initdata"
)

// lateSecrets opens sealed secrets once it is known whom to ask. Containers ask after their images are there, so they hardly wait.
type lateSecrets struct {
	known    chan struct{}
	unsealer *secret.Unsealer // valid once known is closed
}

func newLateSecrets() *lateSecrets { return &lateSecrets{known: make(chan struct{})} }

// set makes the unsealer known. Call it once.
func (l *lateSecrets) set(unsealer *secret.Unsealer) {
	l.unsealer = unsealer
	close(l.known)
}

// Unseal waits until it is known whom to ask.
func (l *lateSecrets) Unseal(ctx context.Context, text string) ([]byte, error) {
	select {
	case <-l.known:
		return l.unsealer.Unseal(ctx, text)
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for the measured document: %w", ctx.Err())
	}
}

// setSecrets has secrets opened as the document says, by its key broker; source is nil when it names none.
func setSecrets(late *lateSecrets, document *initdata.Document, source secret.Source) error {
	config, err := document.Coffer()
	if err != nil {
		return err
	}
	late.set(secret.New(source, config.Secrets))
	return nil
}
