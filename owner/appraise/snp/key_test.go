package snp

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-sev-guest/abi"

	"github.com/coffer-project/coffer/owner/appraise"
	"github.com/coffer-project/coffer/owner/appraise/collateral"
	"github.com/coffer-project/coffer/owner/appraise/snp/snptest"
	"github.com/coffer-project/coffer/proto/kbs"
)

// There is no public report of a Turin machine, but a certificate of a real chip.
func TestRealTurinCertificate(t *testing.T) {
	v := verifier(t, Options{})
	key, err := parseKey(file(t, "turin-vcek.der"), abi.VcekReportSigner, "Turin")
	if err != nil {
		t.Fatal(err)
	}
	if err := v.checkChain(key); err != nil {
		t.Error(err)
	}
	if key.tcb.FMC == nil || len(key.chipID) != 8 || key.extensions.product != "Turin" {
		t.Errorf("got %+v", key.extensions)
	}
	for _, other := range []string{"Milan", "Genoa"} {
		if _, err := parseKey(file(t, "turin-vcek.der"), abi.VcekReportSigner, other); !errors.Is(err, errdefs.ErrPermissionDenied) {
			t.Errorf("as %s: %v", other, err)
		}
	}
	if _, err := parseKey(file(t, "turin-vcek.der"), abi.VlekReportSigner, "Turin"); !errors.Is(err, errdefs.ErrPermissionDenied) {
		t.Errorf("as VLEK: %v", err)
	}
}

func TestCertificateFromFiles(t *testing.T) {
	authentic := genoa(t)
	turin := signers()["Turin"]
	var forged kbs.SNPEvidence
	if err := json.Unmarshal(forge(t, turin, snptest.Report{ReportData: []byte("x")}), &forged); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		evidence *kbs.SNPEvidence
		verifier func(Options) *Verifier
		file     string
	}{
		"genoa": {
			authentic, func(o Options) *Verifier { return verifier(t, o) },
			"Genoa/" + hex.EncodeToString(authentic.Report.ChipID) + "?blSPL=10&teeSPL=00&snpSPL=23&ucodeSPL=25",
		},
		"turin": {
			&forged, func(o Options) *Verifier { return forgedVerifier(t, turin, o) },
			"Turin/" + hex.EncodeToString(turin.ChipID[:8]) + "?fmcSPL=02&blSPL=04&teeSPL=01&snpSPL=22&ucodeSPL=213",
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			v := tc.verifier(Options{Collateral: &collateral.Store{Dir: dir}})
			vcek := tc.evidence.Certificates[0].Data
			tc.evidence.Certificates = nil
			e := appraise.Evidence{Raw: encode(t, tc.evidence), ReportData: tc.evidence.Report.ReportData}
			_, err := v.Verify(t.Context(), e)
			file := "kdsintf.amd.com/vcek/v1/" + tc.file
			if !errors.Is(err, errdefs.ErrNotFound) || !strings.Contains(err.Error(), file) {
				t.Fatalf("got %v", err)
			}
			write(t, filepath.Join(dir, file), vcek)
			if _, err := v.Verify(t.Context(), e); err != nil {
				t.Error(err)
			}
		})
	}
}

func write(t *testing.T, name string, data []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestRevocation(t *testing.T) {
	s := signers()["Milan"]
	current, err := s.Revocations(time.Now(), false)
	if err != nil {
		t.Fatal(err)
	}
	revoked, err := s.Revocations(time.Now(), true)
	if err != nil {
		t.Fatal(err)
	}
	old, err := s.Revocations(time.Now().Add(-48*time.Hour), false)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := signers()["Genoa"].Revocations(time.Now(), false)
	if err != nil {
		t.Fatal(err)
	}
	e := appraise.Evidence{Raw: forge(t, s, snptest.Report{ReportData: []byte("x")}), ReportData: []byte("x")}
	for name, tc := range map[string]struct {
		list []byte
		want error
	}{
		"none":    {nil, errdefs.ErrNotFound},
		"current": {current, nil},
		"revoked": {revoked, errdefs.ErrPermissionDenied},
		"expired": {old, errdefs.ErrFailedPrecondition},
		"foreign": {foreign, errdefs.ErrFailedPrecondition},
		"damaged": {current[1:], errdefs.ErrFailedPrecondition},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if tc.list != nil {
				write(t, filepath.Join(dir, "kdsintf.amd.com/vcek/v1/Milan/crl"), tc.list)
			}
			v := forgedVerifier(t, s, Options{RequireCRL: true, Collateral: &collateral.Store{Dir: dir}})
			if _, err := v.Verify(t.Context(), e); !errors.Is(err, tc.want) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// A key that was verified once must be refused when its certificates have ended or their endorser was revoked meanwhile.
func TestRememberedKey(t *testing.T) {
	s := signers()["Milan"]
	e := appraise.Evidence{Raw: forge(t, s, snptest.Report{ReportData: []byte("x")}), ReportData: []byte("x")}
	now, dir := time.Now(), t.TempDir()
	list := filepath.Join(dir, "kdsintf.amd.com/vcek/v1/Milan/crl")
	v := forgedVerifier(t, s, Options{RequireCRL: true, Collateral: &collateral.Store{Dir: dir}, Now: func() time.Time { return now }})
	for _, tc := range []struct {
		name    string
		at      time.Time
		revoked bool
		want    error
	}{
		{"too early", now.AddDate(-50, 0, 0), false, errdefs.ErrPermissionDenied},
		{"first", now, false, nil},
		{"remembered", now, false, nil},
		{"revoked", now, true, errdefs.ErrPermissionDenied},
		{"ended", now.AddDate(50, 0, 0), false, errdefs.ErrPermissionDenied},
		{"again", now, false, nil},
	} {
		now = tc.at
		der, err := s.Revocations(now, tc.revoked)
		if err != nil {
			t.Fatal(err)
		}
		write(t, list, der)
		if _, err := v.Verify(t.Context(), e); !errors.Is(err, tc.want) {
			t.Errorf("%s: got %v", tc.name, err)
		}
	}
	known := keyID{digest: sha256.Sum256(s.Certificate()), signer: abi.VcekReportSigner, product: "Milan"}
	key, ok := v.keys.Get(known)
	if !ok {
		t.Fatal("the key was not remembered")
	}
	if key.notBefore.Before(key.endorser.NotBefore) || key.notAfter.After(key.endorser.NotAfter) || key.notAfter.After(key.root.NotAfter) {
		t.Errorf("remembered from %s to %s", key.notBefore, key.notAfter)
	}
}

func TestParseRoots(t *testing.T) {
	good := signers()["Milan"].Roots()
	blocks := slices.DeleteFunc(strings.SplitAfter(string(good), "-----END CERTIFICATE-----\n"), func(s string) bool { return s == "" })
	foreign := string(signers()["Turin"].Roots())
	foreignRoot := foreign[strings.LastIndex(foreign, "-----BEGIN"):]
	for name, bundle := range map[string]string{
		"empty":       "",
		"no root":     blocks[0],
		"root only":   blocks[2],
		"other text":  "x" + string(good) + "x",
		"other chain": blocks[0] + foreignRoot,
		"leaf":        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
	} {
		if _, err := ParseRoots([]byte(bundle)); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if roots, err := ParseRoots([]byte(foreign + string(good))); err != nil || len(roots) != 2 {
		t.Errorf("got %v, %v", roots, err)
	}
}

// A verifier without files must not ask the network for what a guest names.
func TestNoNetworkByDefault(t *testing.T) {
	before := http.DefaultTransport
	t.Cleanup(func() { http.DefaultTransport = before })
	http.DefaultTransport = nil // any use would panic
	evidence := genoa(t)
	evidence.Certificates = nil
	_, err := verifier(t, Options{}).Verify(t.Context(), appraise.Evidence{Raw: encode(t, evidence), ReportData: evidence.Report.ReportData})
	if !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("got %v", err)
	}
}

func FuzzParseKey(f *testing.F) {
	f.Add([]byte(genoa(f).Certificates[0].Data))
	f.Add(file(f, "turin-vcek.der"))
	f.Fuzz(func(t *testing.T, der []byte) {
		if key, err := parseKey(der, abi.VcekReportSigner, ""); err == nil && len(key.chipID) != 0 && len(key.chipID) != 8 && len(key.chipID) != 64 {
			t.Errorf("chip ID of %d bytes", len(key.chipID))
		}
	})
}
