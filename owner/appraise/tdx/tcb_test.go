package tdx

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-tdx-guest/pcs"
	tdxtest "github.com/google/go-tdx-guest/testing"
	libdata "github.com/google/go-tdx-guest/testing/testdata"

	"github.com/coffer-project/coffer/owner/appraise/collateral"
)

// tree writes collateral as a broker's directory has it.
func tree(t *testing.T, fmspc string, tcbInfo, identity []byte) string {
	t.Helper()
	dir := t.TempDir()
	for address, piece := range map[string]struct {
		body   []byte
		header map[string][]string
	}{
		pcs.TcbInfoURL(fmspc):     {tcbInfo, tdxtest.TcbInfoHeader},
		pcs.QeIdentityURL():       {identity, tdxtest.QeIdentityHeader},
		pcs.PckCrlURL("platform"): {libdata.PckCrlBody, nil},
		rootCRLAddress:            {libdata.RootCrlBody, nil},
	} {
		name := filepath.Join(dir, strings.TrimPrefix(address, "https://"))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, piece.body, 0o644); err != nil {
			t.Fatal(err)
		}
		for header, values := range piece.header {
			if err := os.WriteFile(name+".header", []byte(header+": "+values[0]+"\r\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	return dir
}

// Real collateral against the real platforms that it is for.
func TestRealCollateral(t *testing.T) {
	older := tree(t, "50806f000000", libdata.TcbInfoBody, libdata.QeIdentityBody)
	newer := tree(t, "00a06d080000", file(t, "tcb-info.json"), file(t, "enclave-identity.json"))
	for name, tc := range map[string]struct {
		quote, dir string
		at         time.Time
		crl        bool
		status     pcs.TcbComponentStatus
		expired    bool
		want       error
	}{
		"current":         {"quote-v4-debug.bin", older, time.Date(2023, 7, 1, 0, 0, 0, 0, time.UTC), false, "UpToDate", false, nil},
		"expired":         {"quote-v4-debug.bin", older, time.Date(2024, 7, 1, 0, 0, 0, 0, time.UTC), false, "UpToDate", true, nil},
		"lists too old":   {"quote-v4-debug.bin", older, time.Date(2024, 7, 1, 0, 0, 0, 0, time.UTC), true, "", false, errdefs.ErrFailedPrecondition},
		"signer's end":    {"quote-v4-debug.bin", older, time.Date(2025, 7, 1, 0, 0, 0, 0, time.UTC), false, "", false, errdefs.ErrFailedPrecondition},
		"not yet issued":  {"quote-v4.bin", newer, time.Date(2025, 5, 1, 0, 0, 0, 0, time.UTC), false, "OutOfDate", true, nil},
		"other platform":  {"quote-v5.bin", older, now, false, "", false, errdefs.ErrNotFound},
		"no collateral":   {"quote-v5.bin", "", now, false, "", false, errdefs.ErrNotFound},
		"platform's list": {"quote-v4-debug.bin", older, time.Date(2023, 7, 1, 0, 0, 0, 0, time.UTC), true, "UpToDate", false, nil},
	} {
		t.Run(name, func(t *testing.T) {
			v := verifier(t, Options{Now: func() time.Time { return tc.at }, Collateral: &collateral.Store{Dir: tc.dir}, RequireCRL: tc.crl})
			raw := file(t, tc.quote)
			q := parsed(t, raw)
			p, err := v.checkSignatures(raw, q)
			if err != nil {
				t.Fatal(err)
			}
			level, err := v.checkTCB(t.Context(), q, p)
			if !errors.Is(err, tc.want) {
				t.Fatalf("got %v", err)
			}
			if err == nil && (level.status != tc.status || level.expired != tc.expired || level.date == "") {
				t.Errorf("got %+v", level)
			}
		})
	}
}

// What Intel did not sign must not be believed.
func TestCollateralTampering(t *testing.T) {
	at := func() time.Time { return time.Date(2023, 7, 1, 0, 0, 0, 0, time.UTC) }
	raw := file(t, "quote-v4-debug.bin")
	q := parsed(t, raw)
	for name, dir := range map[string]string{
		"TCB information":   tree(t, "50806f000000", bytes.Replace(libdata.TcbInfoBody, []byte(`"OutOfDate"`), []byte(`"UpToDate"`), 1), libdata.QeIdentityBody),
		"enclave identity":  tree(t, "50806f000000", libdata.TcbInfoBody, bytes.Replace(libdata.QeIdentityBody, []byte(`"isvprodid":2`), []byte(`"isvprodid":3`), 1)),
		"not JSON":          tree(t, "50806f000000", []byte("{"), libdata.QeIdentityBody),
		"for others":        tree(t, "50806f000000", file(t, "tcb-info.json"), libdata.QeIdentityBody),
		"identity for info": tree(t, "50806f000000", libdata.QeIdentityBody, libdata.QeIdentityBody),
	} {
		v := verifier(t, Options{Now: at, Collateral: &collateral.Store{Dir: dir}})
		p, err := v.checkSignatures(raw, q)
		if err != nil {
			t.Fatal(err)
		}
		if level, err := v.checkTCB(t.Context(), q, p); !errors.Is(err, errdefs.ErrFailedPrecondition) {
			t.Errorf("%s: got %+v, %v", name, level, err)
		}
	}
}

func TestRevocation(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	authority := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "a"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCRLSign, SubjectKeyId: []byte{1}}
	der, err := x509.CreateCertificate(rand.Reader, authority, authority, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	if authority, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	platform := &x509.Certificate{SerialNumber: big.NewInt(7)}
	for name, tc := range map[string]struct {
		serial int64
		update time.Time
		issuer *x509.Certificate
		want   error
	}{
		"other":   {8, now, authority, nil},
		"revoked": {7, now, authority, errdefs.ErrPermissionDenied},
		"old":     {8, now.Add(-48 * time.Hour), authority, errdefs.ErrFailedPrecondition},
		"foreign": {8, now, verifier(t, Options{}).root, errdefs.ErrFailedPrecondition},
	} {
		list := &x509.RevocationList{
			Number: big.NewInt(1), ThisUpdate: tc.update.Add(-time.Hour), NextUpdate: tc.update.Add(time.Hour),
			RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: big.NewInt(tc.serial), RevocationTime: tc.update}},
		}
		if der, err = x509.CreateRevocationList(rand.Reader, list, authority, key); err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		file := filepath.Join(dir, strings.TrimPrefix(rootCRLAddress, "https://"))
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, der, 0o644); err != nil {
			t.Fatal(err)
		}
		v := verifier(t, Options{Collateral: &collateral.Store{Dir: dir}})
		if err := v.notRevoked(t.Context(), rootCRLAddress, tc.issuer, platform); !errors.Is(err, tc.want) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestLevels(t *testing.T) {
	var info pcs.TdxTcbInfo
	if err := json.Unmarshal(file(t, "tcb-info.json"), &info); err != nil {
		t.Fatal(err)
	}
	raw := file(t, "quote-v4.bin")
	p, err := verifier(t, Options{}).checkSignatures(raw, parsed(t, raw))
	if err != nil {
		t.Fatal(err)
	}
	realPCE := p.TCB.PCESvn // Intel asks for 13
	p.TCB.PCESvn = 13
	for name, tc := range map[string]struct {
		edit             func(*quote, *platform)
		platform, module pcs.TcbComponentStatus // "" means that no level is reached
	}{
		"as it is":         {func(_ *quote, p *platform) { p.TCB.PCESvn = realPCE }, "OutOfDate", "UpToDate"},
		"newer PCE":        {func(*quote, *platform) {}, "UpToDate", "UpToDate"},
		"old microcode":    {func(_ *quote, p *platform) { p.TCB.CPUSvnComponents = make([]byte, 16) }, "", "UpToDate"},
		"old PCE":          {func(_ *quote, p *platform) { p.TCB.PCESvn = 0 }, "", "UpToDate"},
		"old module":       {func(q *quote, _ *platform) { q.body.teeTCBSVN[0] = 1 }, "UpToDate", ""},
		"unknown module":   {func(q *quote, _ *platform) { q.body.teeTCBSVN[1] = 9 }, "UpToDate", ""},
		"module 1, old":    {func(q *quote, _ *platform) { q.body.teeTCBSVN[0], q.body.teeTCBSVN[1] = 2, 1 }, "UpToDate", "OutOfDate"},
		"foreign module":   {func(q *quote, _ *platform) { q.body.mrSignerSeam[0] = 1 }, "UpToDate", ""},
		"odd module flags": {func(q *quote, _ *platform) { q.body.seamAttributes[0] = 1 }, "UpToDate", ""},
	} {
		t.Run(name, func(t *testing.T) {
			q, edited := parsed(t, bytes.Clone(raw)), *p
			tc.edit(q, &edited)
			level, err := platformLevel(q, &edited, &info.TcbInfo)
			if (err != nil) != (tc.platform == "") || err == nil && level.status != tc.platform || err != nil && !errors.Is(err, errdefs.ErrPermissionDenied) {
				t.Errorf("platform: got %+v, %v", level, err)
			}
			module, err := moduleLevel(q, &info.TcbInfo)
			if (err != nil) != (tc.module == "") || module != tc.module || err != nil && !errors.Is(err, errdefs.ErrPermissionDenied) {
				t.Errorf("module: got %s, %v", module, err)
			}
		})
	}
}

func TestEnclaveLevel(t *testing.T) {
	var identity pcs.QeIdentity
	if err := json.Unmarshal(file(t, "enclave-identity.json"), &identity); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		at    int
		value byte
		want  error
	}{
		"as it is":         {reportSVN, 7, nil},
		"too old":          {reportSVN, 3, errdefs.ErrPermissionDenied},
		"other signer":     {reportMRSigner, 0, errdefs.ErrPermissionDenied},
		"other product":    {reportProductID, 1, errdefs.ErrPermissionDenied},
		"other attributes": {reportAttributes + 1, 1, errdefs.ErrPermissionDenied},
		"other miscselect": {reportMiscSelect, 1, errdefs.ErrPermissionDenied},
	} {
		q := parsed(t, file(t, "quote-v4.bin"))
		q.qeReport[tc.at] = tc.value
		if status, err := enclaveLevel(q, &identity.EnclaveIdentity); !errors.Is(err, tc.want) || err == nil && status != "UpToDate" {
			t.Errorf("%s: got %s, %v", name, status, err)
		}
	}
}

func TestConverge(t *testing.T) {
	for pair, want := range map[[2]pcs.TcbComponentStatus]pcs.TcbComponentStatus{
		{"UpToDate", "UpToDate"}: "UpToDate", {"UpToDate", "OutOfDate"}: "OutOfDate", {"SWHardeningNeeded", "UpToDate"}: "SWHardeningNeeded",
		{"SWHardeningNeeded", "OutOfDate"}: "OutOfDate", {"ConfigurationNeeded", "OutOfDate"}: "OutOfDateConfigurationNeeded",
		{"UpToDate", "Revoked"}: "Revoked", {"Revoked", "UpToDate"}: "Revoked", {"OutOfDate", "OutOfDate"}: "OutOfDate",
	} {
		if got := converge(pair[0], pair[1]); got != want {
			t.Errorf("%v: got %s, want %s", pair, got, want)
		}
	}
}
