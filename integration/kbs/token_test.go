package kbs

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"github.com/coffer-project/coffer/owner/broker/brokertest"
)

// TestToken: with the token and key that a program in the pod is given, it gets a resource by itself; and the session is the guest's own,
// so that it costs no attestation.
func TestToken(t *testing.T) {
	b := start(t, brokertest.Options{})
	c := newClient(t, b, nil)
	if _, err := c.Resource(t.Context(), uri); err != nil {
		t.Fatal(err)
	}
	token, text, err := c.Token(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if n := b.Requests("attest"); n != 1 {
		t.Errorf("%d attestations", n)
	}
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "PRIVATE KEY" {
		t.Fatal("no key in PEM")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, b.URL+"/kbs/v0/resource/"+strings.TrimPrefix(uri, "kbs:///"), nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+token)
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK {
		t.Fatalf("%s %s, %v", answer.Status, body, err)
	}
	sealed, err := jose.ParseEncryptedJSON(string(body), []jose.KeyAlgorithm{jose.ECDH_ES_A256KW}, []jose.ContentEncryption{jose.A256GCM})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := sealed.Decrypt(key); err != nil || !bytes.Equal(got, []byte("kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk")) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}
