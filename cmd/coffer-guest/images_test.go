package main

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/guestpull/image"
	"github.com/coffer-project/coffer/proto/initdata"
)

func document(t *testing.T, data map[string]string) []byte {
	t.Helper()
	raw, err := (&initdata.Document{Version: "0.1.0", Algorithm: "sha256", Data: data}).Encode()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestReadMeasured(t *testing.T) {
	const cdh = "[kbc]\nname = \"cc_kbc\"\nurl = \"http://cdh.test:1\"\n"
	const aa = "[token_configs.coco_kbs]\nurl = \"http://aa.test:2\"\n"
	for name, test := range map[string]struct {
		raw  []byte
		url  string
		want error
	}{
		"no document":           {nil, "", nil},
		"nothing said":          {document(t, map[string]string{}), "", nil},
		"broker":                {document(t, map[string]string{initdata.KeyCDH: cdh}), "http://cdh.test:1", nil},
		"broker of attestation": {document(t, map[string]string{initdata.KeyAA: aa}), "http://aa.test:2", nil},
		"two brokers":           {document(t, map[string]string{initdata.KeyAA: aa, initdata.KeyCDH: cdh}), "http://cdh.test:1", nil},
		"policy":                {document(t, map[string]string{initdata.KeyPolicy: "package agent_policy"}), "", nil},
		"unknown key":           {document(t, map[string]string{initdata.KeyCDH: "frobnicate = 1\n"}), "", errdefs.ErrInvalidArgument},
		"garbage":               {[]byte("\x00"), "", errdefs.ErrInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			_, got, err := readMeasured(test.raw)
			if !errors.Is(err, test.want) {
				t.Fatalf("error: %v", err)
			}
			if err == nil && got.KBC.URL != test.url {
				t.Errorf("broker %q", got.KBC.URL)
			}
		})
	}
}

type slowImages struct{}

func (slowImages) Pull(ctx context.Context, _ image.Request) (*image.Image, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func (slowImages) Release(context.Context, string) error { return errors.New("released") }

func TestLateImages(t *testing.T) {
	late := newLateImages(50 * time.Millisecond)
	if err := late.Release(t.Context(), "c1"); err != nil {
		t.Errorf("release before the first pull: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := late.Pull(ctx, image.Request{}); !errors.Is(err, context.Canceled) {
		t.Errorf("given up while waiting: %v", err)
	}
	late.set(slowImages{})
	_, err := late.Pull(t.Context(), image.Request{})
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "agent.image_pull_timeout") {
		t.Errorf("slow pull: %v", err)
	}
	if err := late.Release(t.Context(), "c1"); err == nil {
		t.Error("release did not come through")
	}
}
