package tdx

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	libdata "github.com/google/go-tdx-guest/testing/testdata"

	"github.com/coffer-project/coffer/owner/appraise"
	"github.com/coffer-project/coffer/proto/kbs"
)

// The platforms' certificates are valid then.
var now = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func verifier(tb testing.TB, o Options) *Verifier {
	tb.Helper()
	if o.Now == nil {
		o.Now = func() time.Time { return now }
	}
	v, err := New(o)
	if err != nil {
		tb.Fatal(err)
	}
	return v
}

func file(tb testing.TB, name string) []byte {
	tb.Helper()
	raw, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		tb.Fatal(err)
	}
	return raw
}

func parsed(tb testing.TB, raw []byte) *quote {
	tb.Helper()
	q, err := parseQuote(raw)
	if err != nil {
		tb.Fatal(err)
	}
	return q
}

func document(tb testing.TB, raw, log []byte) json.RawMessage {
	tb.Helper()
	evidence := kbs.TDXEvidence{Quote: base64.StdEncoding.EncodeToString(raw)}
	if log != nil {
		encoded := base64.StdEncoding.EncodeToString(log)
		evidence.EventLog = &encoded
	}
	out, err := json.Marshal(evidence)
	if err != nil {
		tb.Fatal(err)
	}
	return out
}

func trusted(q *quote) appraise.Values {
	return appraise.Values{
		appraise.RefTDXMRTD:  []any{hex.EncodeToString(q.body.mrTD)},
		appraise.RefTDXRTMR1: []any{hex.EncodeToString(q.body.rtmr[1])}, appraise.RefTDXRTMR2: []any{hex.EncodeToString(q.body.rtmr[2])},
	}
}

func TestRealQuotes(t *testing.T) {
	library := bytes.TrimSuffix(libdata.RawQuote, []byte("\nextra bytes(only for testing purpose)\n"))
	for name, tc := range map[string]struct {
		raw      []byte
		version  uint16
		bodyType uint16
	}{
		"version 4":               {file(t, "quote-v4.bin"), 4, body10},
		"version 5, TDX 1.5":      {file(t, "quote-v5.bin"), 5, body15},
		"version 4 from a buffer": {append(file(t, "quote-v4.bin"), make([]byte, 100)...), 4, body10},
		"the library's":           {library, 4, body10},
	} {
		t.Run(name, func(t *testing.T) {
			q := parsed(t, tc.raw)
			if q.version != tc.version || q.bodyType != tc.bodyType {
				t.Errorf("got version %d, body %d", q.version, q.bodyType)
			}
			for trust, want := range map[string]appraise.TrustVector{
				"nothing": {Executables: appraise.ExecutablesUnknown, Hardware: appraise.HardwareUnknown, Configuration: appraise.ConfigurationSafe},
				"image":   {Executables: appraise.ExecutablesApproved, Hardware: appraise.HardwareUnknown, Configuration: appraise.ConfigurationSafe},
			} {
				if name == "the library's" { // of a guest that is open to EPT exceptions
					want.Configuration = appraise.ConfigurationUnknown
				}
				options := Options{}
				if trust == "image" {
					options.References = trusted(q)
				}
				result, err := verifier(t, options).Verify(t.Context(), appraise.Evidence{Raw: document(t, tc.raw, nil), ReportData: q.body.reportData})
				if err != nil {
					t.Fatal(err)
				}
				if result.Vector != want || result.Status != appraise.Contraindicated {
					t.Errorf("%s trusted: got %+v", trust, result)
				}
			}
		})
	}
}

// The claims must have the names and forms that policies written for Trustee look for.
func TestClaimsAreTrustees(t *testing.T) {
	raw := file(t, "quote-v5.bin")
	q := parsed(t, raw)
	result, err := verifier(t, Options{}).Verify(t.Context(), appraise.Evidence{Raw: document(t, raw, nil), ReportData: q.body.reportData})
	if err != nil {
		t.Fatal(err)
	}
	encoded, err := json.Marshal(result.Claims)
	if err != nil {
		t.Fatal(err)
	}
	var claims struct {
		Quote struct {
			Header, Body map[string]string
			Type, Size   string
		}
		Attributes map[string]bool `json:"td_attributes"`
		InitData   string          `json:"init_data"`
	}
	if err := json.Unmarshal(encoded, &claims); err != nil {
		t.Fatal(err)
	}
	for name, got := range map[string][2]string{
		"version": {claims.Quote.Header["version"], "0500"}, "tee_type": {claims.Quote.Header["tee_type"], "81000000"},
		"vendor_id": {claims.Quote.Header["vendor_id"], "939a7233f79c4ca9940a0db3957f0607"},
		"type":      {claims.Quote.Type, "0300"}, "size": {claims.Quote.Size, "88020000"},
		"mr_td": {claims.Quote.Body["mr_td"], hex.EncodeToString(q.body.mrTD)}, "rtmr_1": {claims.Quote.Body["rtmr_1"], hex.EncodeToString(q.body.rtmr[1])},
		"mr_servicetd": {claims.Quote.Body["mr_servicetd"], hex.EncodeToString(q.body.mrServiceTD)},
		"init_data":    {claims.InitData, hex.EncodeToString(q.body.mrConfigID)},
	} {
		if got[0] != got[1] {
			t.Errorf("%s is %q, want %q", name, got[0], got[1])
		}
	}
	if claims.Attributes["debug"] || !claims.Attributes["septve_disable"] {
		t.Errorf("attributes %v", claims.Attributes)
	}
}

func TestRefusals(t *testing.T) {
	raw := file(t, "quote-v5.bin")
	q := parsed(t, raw)
	log := []byte("no log")
	for name, tc := range map[string]struct {
		evidence appraise.Evidence
		at       time.Time
		want     error
	}{
		"other session":      {appraise.Evidence{Raw: document(t, raw, nil), ReportData: []byte("x")}, now, errdefs.ErrPermissionDenied},
		"other initdata":     {appraise.Evidence{Raw: document(t, raw, nil), ReportData: q.body.reportData, InitDataDigest: []byte("x")}, now, errdefs.ErrPermissionDenied},
		"certificate's end":  {appraise.Evidence{Raw: document(t, raw, nil), ReportData: q.body.reportData}, now.AddDate(5, 0, 0), errdefs.ErrPermissionDenied},
		"no log":             {appraise.Evidence{Raw: document(t, raw, log), ReportData: q.body.reportData}, now, errdefs.ErrInvalidArgument},
		"foreign log":        {appraise.Evidence{Raw: document(t, raw, foreignLog(t)), ReportData: q.body.reportData}, now, errdefs.ErrPermissionDenied},
		"not base64":         {appraise.Evidence{Raw: []byte(`{"cc_eventlog":null,"quote":"!"}`), ReportData: q.body.reportData}, now, errdefs.ErrInvalidArgument},
		"log not base64":     {appraise.Evidence{Raw: []byte(`{"cc_eventlog":"!","quote":""}`), ReportData: q.body.reportData}, now, errdefs.ErrInvalidArgument},
		"unknown member":     {appraise.Evidence{Raw: []byte(`{"quote":"","x":1}`), ReportData: q.body.reportData}, now, errdefs.ErrInvalidArgument},
		"the library's tail": {appraise.Evidence{Raw: document(t, libdata.RawQuote, nil), ReportData: q.body.reportData}, now, errdefs.ErrInvalidArgument},
	} {
		v := verifier(t, Options{Now: func() time.Time { return tc.at }})
		if _, err := v.Verify(t.Context(), tc.evidence); !errors.Is(err, tc.want) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	debug := file(t, "quote-v4-debug.bin")
	_, err := verifier(t, Options{}).Verify(t.Context(), appraise.Evidence{Raw: document(t, debug, nil), ReportData: parsed(t, debug).body.reportData})
	if !errors.Is(err, errdefs.ErrPermissionDenied) || !strings.Contains(err.Error(), "debugged") {
		t.Errorf("debug: got %v", err)
	}
}

func foreignLog(t *testing.T) []byte {
	t.Helper()
	raw, err := os.ReadFile("../../measure/eventlog/testdata/ccel-ovmf.bin")
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// A bit that changes anywhere in a quote must be noticed.
func TestTampering(t *testing.T) {
	v := verifier(t, Options{})
	for _, name := range []string{"quote-v4.bin", "quote-v5.bin"} {
		raw := file(t, name)
		reportData := parsed(t, raw).body.reportData
		end := bytes.LastIndex(raw, []byte("-----END")) // what follows the certificates is not looked at
		for at := 0; at < end; at += 11 {
			tampered := bytes.Clone(raw)
			tampered[at] ^= 1
			_, err := v.Verify(t.Context(), appraise.Evidence{Raw: document(t, tampered, nil), ReportData: reportData})
			if !errors.Is(err, errdefs.ErrPermissionDenied) && !errors.Is(err, errdefs.ErrInvalidArgument) {
				t.Errorf("%s byte %#x: %v", name, at, err)
			}
		}
	}
}

func TestParseQuoteRefuses(t *testing.T) {
	v4, v5 := file(t, "quote-v4.bin"), file(t, "quote-v5.bin")
	edit := func(raw []byte, at int, value ...byte) []byte {
		out := bytes.Clone(raw)
		copy(out[at:], value)
		return out
	}
	const v4Signature, v5Signature = headerSize + body10Size, headerSize + 6 + body15Size
	for name, raw := range map[string][]byte{
		"empty":                 nil,
		"header only":           v4[:headerSize],
		"cut body":              v4[:200],
		"cut signature":         v4[:v4Signature+50],
		"cut chain":             v4[:len(v4)-100],
		"version 3":             edit(v4, 0, 3),
		"version 6":             edit(v5, 0, 6),
		"SGX":                   edit(v4, 4, 0),
		"other key type":        edit(v4, 2, 3),
		"other vendor":          edit(v4, 12, 0),
		"SGX body":              edit(v5, headerSize, 1),
		"body type and size":    edit(v5, headerSize, 2),
		"body size":             edit(v5, headerSize+2, 0x89),
		"signature too long":    edit(v5, v5Signature, 0xff, 0xff, 0xff, 0x7f),
		"signature too short":   edit(v5, v5Signature, 1, 0, 0, 0),
		"certification type":    edit(v5, v5Signature+4+128, 5),
		"certification size":    edit(v5, v5Signature+4+130, 0),
		"authentication's size": edit(v5, v5Signature+4+134+448, 0xff, 0xff),
		"after the end":         append(bytes.Clone(v5), 0, 1),
		"too large":             make([]byte, kbs.MaxQuote+1),
	} {
		if q, err := parseQuote(raw); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%s: got %+v, %v", name, q, err)
		}
	}
}

// A version 5 quote may carry the body of TDX 1.0; there is no public one, so its bounds alone are tried.
func TestParseVersion5WithBody10(t *testing.T) {
	v4 := file(t, "quote-v4.bin")
	raw := binary.LittleEndian.AppendUint32(append(bytes.Clone(v4[:headerSize]), body10, 0), body10Size)
	raw = append(raw, v4[headerSize:]...)
	raw[0] = 5
	q, want := parsed(t, raw), parsed(t, v4)
	if q.bodyType != body10 || !bytes.Equal(q.body.reportData, want.body.reportData) || !bytes.Equal(q.pckChain, want.pckChain) || len(q.signed) != headerSize+6+body10Size {
		t.Errorf("got %+v", q)
	}
	if _, err := verifier(t, Options{}).checkSignatures(raw, q); !errors.Is(err, errdefs.ErrPermissionDenied) {
		t.Errorf("made from another version: %v", err)
	}
}

func TestJudgement(t *testing.T) {
	raw := file(t, "quote-v5.bin")
	for name, tc := range map[string]struct {
		edit  func(*quote, appraise.Values)
		level *tcb
		want  appraise.TrustVector
	}{
		"good":           {nil, &tcb{status: "UpToDate"}, appraise.TrustVector{Executables: 3, Hardware: 2, Configuration: 3}},
		"expired":        {nil, &tcb{status: "UpToDate", expired: true}, appraise.TrustVector{Executables: 3, Hardware: 97, Configuration: 3}},
		"old":            {nil, &tcb{status: "OutOfDate"}, appraise.TrustVector{Executables: 3, Hardware: 32, Configuration: 3}},
		"revoked":        {nil, &tcb{status: "Revoked"}, appraise.TrustVector{Executables: 3, Hardware: 96, Configuration: 3}},
		"other firmware": {func(q *quote, _ appraise.Values) { q.body.mrTD[0] ^= 1 }, &tcb{status: "UpToDate"}, appraise.TrustVector{Executables: 33, Hardware: 2, Configuration: 3}},
		"other kernel":   {func(q *quote, _ appraise.Values) { q.body.rtmr[1][0] ^= 1 }, &tcb{status: "UpToDate"}, appraise.TrustVector{Executables: 33, Hardware: 2, Configuration: 3}},
		"other shape":    {func(_ *quote, v appraise.Values) { v[appraise.RefTDXRTMR0] = "00" }, &tcb{status: "UpToDate"}, appraise.TrustVector{Executables: 33, Hardware: 2, Configuration: 3}},
		"XFAM named":     {func(q *quote, v appraise.Values) { v[appraise.RefTDXXFAM] = hex.EncodeToString(q.body.xfam) }, &tcb{status: "UpToDate"}, appraise.TrustVector{Executables: 3, Hardware: 2, Configuration: 2}},
		"other XFAM":     {func(_ *quote, v appraise.Values) { v[appraise.RefTDXXFAM] = "00" }, &tcb{status: "UpToDate"}, appraise.TrustVector{Executables: 3, Hardware: 2, Configuration: 36}},
		"migratable":     {func(q *quote, _ appraise.Values) { q.body.tdAttributes[3] |= 1 << 5 }, &tcb{status: "UpToDate"}, appraise.TrustVector{Executables: 3, Hardware: 2, Configuration: 96}},
		"EPT exceptions": {func(q *quote, _ appraise.Values) { q.body.tdAttributes[3] = 0 }, &tcb{status: "UpToDate"}, appraise.TrustVector{Executables: 3, Hardware: 2, Configuration: 36}},
	} {
		t.Run(name, func(t *testing.T) {
			q := parsed(t, bytes.Clone(raw))
			references := trusted(parsed(t, raw))
			if tc.edit != nil {
				tc.edit(q, references)
			}
			got, err := verifier(t, Options{References: references}).judge(t.Context(), q, tc.level)
			if err != nil || got != tc.want {
				t.Errorf("got %+v, %v", got, err)
			}
		})
	}
	fault := errors.New("store is down")
	_, err := verifier(t, Options{References: broken{fault}}).Verify(t.Context(), appraise.Evidence{Raw: document(t, raw, nil), ReportData: parsed(t, raw).body.reportData})
	if !errors.Is(err, fault) {
		t.Errorf("got %v", err)
	}
}

type broken struct{ err error }

func (b broken) Reference(context.Context, string) (any, error) { return nil, b.err }

func BenchmarkVerify(b *testing.B) {
	for _, name := range []string{"quote-v4.bin", "quote-v5.bin"} {
		b.Run(name, func(b *testing.B) {
			raw := file(b, name)
			v := verifier(b, Options{})
			e := appraise.Evidence{Raw: document(b, raw, nil), ReportData: parsed(b, raw).body.reportData}
			for b.Loop() {
				if _, err := v.Verify(b.Context(), e); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func FuzzParseQuote(f *testing.F) {
	for _, name := range []string{"quote-v4.bin", "quote-v5.bin"} {
		f.Add(file(f, name))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		q, err := parseQuote(raw)
		if err != nil {
			return
		}
		if len(q.signature) != sigSize || len(q.attestationKey) != sigSize || len(q.qeReport) != reportSize || len(q.body.reportData) != 64 {
			t.Errorf("accepted %x as %+v", raw, q)
		}
		if certificates, err := parseChain(q.pckChain); err == nil && len(certificates) > maxChain {
			t.Errorf("%d certificates", len(certificates))
		}
	})
}

func FuzzVerify(f *testing.F) {
	f.Add([]byte(document(f, file(f, "quote-v5.bin"), nil)))
	v := verifier(f, Options{})
	f.Fuzz(func(t *testing.T, raw []byte) {
		if result, err := v.Verify(t.Context(), appraise.Evidence{Raw: raw, ReportData: []byte("x")}); err == nil {
			t.Errorf("accepted %q as %+v", raw, result)
		}
	})
}
