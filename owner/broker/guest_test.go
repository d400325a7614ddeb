package broker_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"github.com/coffer-project/coffer/owner/appraise/snp/snptest"
	"github.com/coffer-project/coffer/owner/broker/brokertest"
	"github.com/coffer-project/coffer/proto/kbs"
)

const uri = "kbs:///default/key/1"

var secret = []byte("thirty-two bytes of key material")

// guest speaks the protocol step by step, so that a test can go wrong at each.
type guest struct {
	t      *testing.T
	broker http.Handler

	private   crypto.PrivateKey
	jwk       json.RawMessage
	algorithm jose.KeyAlgorithm
	cookie    string
	nonce     string

	// snp makes the guest one of an SNP machine, for which it forges reports; nil means sample.
	snp    *snptest.Signer
	report snptest.Report
}

func newGuest(t *testing.T, b *brokertest.Broker) *guest {
	t.Helper()
	g := &guest{t: t, broker: b.Handler}
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	g.use(private, &private.PublicKey, jose.ECDH_ES_A256KW)
	return g
}

func (g *guest) use(private crypto.PrivateKey, public any, algorithm jose.KeyAlgorithm) {
	g.t.Helper()
	jwk, err := jose.JSONWebKey{Key: public, Algorithm: string(algorithm)}.MarshalJSON()
	if err != nil {
		g.t.Fatal(err)
	}
	g.private, g.jwk, g.algorithm = private, jwk, algorithm
}

func (g *guest) send(method, path string, body []byte, edit func(*http.Request)) *httptest.ResponseRecorder {
	g.t.Helper()
	r := httptest.NewRequest(method, path, bytes.NewReader(body))
	if g.cookie != "" {
		r.AddCookie(&http.Cookie{Name: kbs.SessionCookie, Value: g.cookie})
	}
	if edit != nil {
		edit(r)
	}
	w := httptest.NewRecorder()
	g.broker.ServeHTTP(w, r)
	return w
}

func (g *guest) auth() {
	g.t.Helper()
	tee := kbs.TEESample
	if g.snp != nil {
		tee = kbs.TEESNP
	}
	w := g.send(http.MethodPost, kbs.PathAuth, fmt.Appendf(nil, `{"version":"0.4.0","tee":%q,"extra-params":{"supported-hash-algorithms":["sha384"]}}`, tee), nil)
	var challenge kbs.Challenge
	if err := kbs.Decode(w.Body.Bytes(), kbs.MaxChallenge, &challenge); err != nil || w.Code != http.StatusOK {
		g.t.Fatalf("auth: status %d, %v", w.Code, err)
	}
	for _, cookie := range w.Result().Cookies() {
		if cookie.Name == kbs.SessionCookie {
			g.cookie = cookie.Value
		}
	}
	g.nonce = challenge.Nonce
}

// attestation builds a good one for edit to spoil. Evidence is computed before edit.
func (g *guest) attestation(edit func(*kbs.Attestation)) []byte {
	g.t.Helper()
	a := kbs.Attestation{RuntimeData: kbs.RuntimeData{Nonce: g.nonce, TEEPublicKey: g.jwk}}
	g.bind(&a)
	if edit != nil {
		edit(&a)
	}
	raw, err := json.Marshal(a)
	if err != nil {
		g.t.Fatal(err)
	}
	return raw
}

func (g *guest) bind(a *kbs.Attestation) {
	g.t.Helper()
	data, err := kbs.ReportData(kbs.SHA384, a.RuntimeData.Nonce, a.RuntimeData.TEEPublicKey, a.Evidence.Additional)
	if err != nil {
		g.t.Fatal(err)
	}
	if g.snp != nil {
		report := g.report
		report.ReportData = data
		a.Evidence.Primary, err = g.snp.Evidence(report)
	} else {
		a.Evidence.Primary, err = json.Marshal(map[string]any{"svn": "1", "report_data": data})
	}
	if err != nil {
		g.t.Fatal(err)
	}
}

func (g *guest) attest(edit func(*kbs.Attestation)) *httptest.ResponseRecorder {
	g.t.Helper()
	return g.send(http.MethodPost, kbs.PathAttest, g.attestation(edit), nil)
}

// handshake returns the token.
func (g *guest) handshake() string {
	g.t.Helper()
	g.auth()
	w := g.attest(nil)
	var reply kbs.TokenReply
	if err := kbs.Decode(w.Body.Bytes(), kbs.MaxTokenReply, &reply); err != nil || w.Code != http.StatusOK {
		g.t.Fatalf("attest: status %d %s, %v", w.Code, w.Body, err)
	}
	return reply.Token
}

func (g *guest) get(edit func(*http.Request)) *httptest.ResponseRecorder {
	g.t.Helper()
	return g.send(http.MethodGet, kbs.PathResource+"/default/key/1", nil, edit)
}

func (g *guest) open(w *httptest.ResponseRecorder) []byte {
	g.t.Helper()
	if w.Code != http.StatusOK {
		g.t.Fatalf("resource: status %d %s", w.Code, w.Body)
	}
	if bytes.Contains(w.Body.Bytes(), secret) {
		g.t.Fatal("resource is not sealed")
	}
	jwe, err := jose.ParseEncryptedJSON(w.Body.String(), []jose.KeyAlgorithm{g.algorithm}, []jose.ContentEncryption{jose.A256GCM})
	if err != nil {
		g.t.Fatal(err)
	}
	plain, err := jwe.Decrypt(g.private)
	if err != nil {
		g.t.Fatal(err)
	}
	g.checkHeader(w.Body.Bytes())
	return plain
}

// checkHeader does what guests of Confidential Containers do (kbs-types, ProtectedHeader): they read the protected header and write it
// anew, sorted, and what they have written is what they authenticate. It must be what the broker wrote.
func (g *guest) checkHeader(sealed []byte) {
	g.t.Helper()
	var members map[string]string
	if err := json.Unmarshal(sealed, &members); err != nil {
		g.t.Fatal(err)
	}
	if len(members) != 5 || members["encrypted_key"] == "" || members["iv"] == "" || members["ciphertext"] == "" || members["tag"] == "" {
		g.t.Errorf("sealed resource has other members than a flattened JWE: %s", sealed)
	}
	written, err := base64.RawURLEncoding.DecodeString(members["protected"])
	if err != nil {
		g.t.Fatal(err)
	}
	var header any
	if err := json.Unmarshal(written, &header); err != nil {
		g.t.Fatal(err)
	}
	if again, err := json.Marshal(header); err != nil || !bytes.Equal(again, written) {
		g.t.Errorf("protected header %s is not sorted, %v", written, err)
	}
}

// refused checks the status and the kind of a problem.
func refused(t *testing.T, w *httptest.ResponseRecorder, status int, kind string) {
	t.Helper()
	p := kbs.ParseProblem(w.Body.Bytes())
	if w.Code != status || p.Kind() != kind || p.Detail == "" || w.Header().Get("Content-Type") != kbs.ProblemType {
		t.Errorf("got status %d %q, want %d %s", w.Code, w.Body, status, kind)
	}
	if bytes.Contains(w.Body.Bytes(), secret) {
		t.Errorf("refusal shows the resource: %s", w.Body)
	}
}
