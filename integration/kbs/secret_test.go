package kbs

import (
	"bytes"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/sirupsen/logrus"

	"github.com/coffer-project/coffer/guestpull/secret"
	"github.com/coffer-project/coffer/owner/broker/audit"
	"github.com/coffer-project/coffer/owner/broker/brokertest"
	"github.com/coffer-project/coffer/owner/sign"
	"github.com/coffer-project/coffer/proto/initdata"
	"github.com/coffer-project/coffer/proto/sealed"
)

const (
	secretURI = "kbs:///default/secret/db"
	signerURI = "kbs:///default/signing/team"
)

var plaintext = []byte("correct horse battery staple\n")

// TestSealedSecret: what the owner seals with a key of theirs, the guest opens by the real broker, with one attestation and one release
// for each resource; what the broker keeps back stays closed.
func TestSealedSecret(t *testing.T) {
	key, err := sign.Generate("ecdsa-p256")
	if err != nil {
		t.Fatal(err)
	}
	public, err := key.EncodePublic()
	if err != nil {
		t.Fatal(err)
	}
	text, err := (&sealed.Vault{Provider: sealed.ProviderKBS, Name: secretURI}).Sign(signerURI, key.SignDigest)
	if err != nil {
		t.Fatal(err)
	}
	b := brokertest.Start(t, brokertest.Options{TLS: true})
	b.Put(t, secretURI, plaintext)
	b.Put(t, signerURI, public)

	var out bytes.Buffer
	logger := logrus.New()
	logger.SetLevel(logrus.TraceLevel)
	logger.SetOutput(&out)
	ctx := log.WithLogger(t.Context(), logrus.NewEntry(logger))
	u := secret.New(newClient(t, b, nil), initdata.SecretsConfig{Signers: []string{signerURI}})
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			if got, err := u.Unseal(ctx, text); err != nil || !bytes.Equal(got, plaintext) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
	group.Wait()
	if a, r := b.Requests("attest"), b.Requests("resource"); a != 1 || r != 2 {
		t.Errorf("%d attestations and %d releases, want 1 and 2", a, r)
	}
	released := map[string]int{}
	for _, r := range b.Audit() {
		if r.Event == audit.EventRelease && r.Decision == audit.Allowed {
			released[r.Resource]++
		}
		if strings.Contains(string(r.Claims)+r.Reason, "battery") {
			t.Error("the audit log shows a secret")
		}
	}
	if len(released) != 2 {
		t.Errorf("released: %v", released)
	}

	for name, tc := range map[string]struct {
		failure brokertest.Failure
		want    error
		word    string
	}{
		"policy":  {brokertest.RefuseResource, errdefs.ErrPermissionDenied, "policy denied"},
		"missing": {brokertest.NoSuchResource, errdefs.ErrNotFound, "has no resource"},
		"garbage": {brokertest.GarbageResource, errdefs.ErrInternal, "senseless"},
		"down":    {brokertest.HangUp, errdefs.ErrUnavailable, "attempts"},
		// The broker decides what the key is; one that is not the signer's opens nothing.
		"wrong key": {brokertest.WrongKey, errdefs.ErrInvalidArgument, "signing key"},
	} {
		b.Fail(tc.failure)
		got, err := secret.New(newClient(t, b, nil), initdata.SecretsConfig{}).Unseal(ctx, text)
		if got != nil || !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.word) || !strings.Contains(err.Error(), secretURI) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	if strings.Contains(out.String(), "battery") {
		t.Error("the guest's log shows a secret")
	}
}
