package attest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-sev-guest/abi"

	"github.com/coffer-project/coffer/proto/kbs"
)

func TestParseCertificates(t *testing.T) {
	one := kbs.SNPCertificate{Type: kbs.SNPVCEK, Data: []byte("chip")}
	edit := func(at int, value uint32) []byte {
		table := certTable(t, one, kbs.SNPCertificate{Type: kbs.SNPASK, Data: []byte("maker")})
		binary.LittleEndian.PutUint32(table[at:], value)
		return table
	}
	for name, tc := range map[string]struct {
		table   []byte
		want    []kbs.SNPCertType
		wantErr error
	}{
		"nothing":          {nil, nil, nil},
		"last entry only":  {make([]byte, 24), nil, nil},
		"a whole page":     {append(certTable(t), make([]byte, 4096-24)...), nil, nil},
		"two":              {edit(16, 72), []kbs.SNPCertType{kbs.SNPVCEK, kbs.SNPASK}, nil},
		"all kinds":        {certTable(t, kbs.SNPCertificate{Type: kbs.SNPARK, Data: []byte("1")}, kbs.SNPCertificate{Type: kbs.SNPVLEK, Data: []byte("2")}), []kbs.SNPCertType{kbs.SNPARK, kbs.SNPVLEK}, nil},
		"unknown kind":     {certTable(t, kbs.SNPCertificate{Type: kbs.SNPOther, Data: []byte("more")}, one), []kbs.SNPCertType{kbs.SNPVCEK}, nil},
		"empty":            {certTable(t, kbs.SNPCertificate{Type: kbs.SNPVCEK}), nil, nil},
		"no last entry":    {certTable(t, one)[:24], nil, errdefs.ErrInvalidArgument},
		"half an entry":    {certTable(t, one)[:30], nil, errdefs.ErrInvalidArgument},
		"outside":          {edit(16, 1<<20), nil, errdefs.ErrInvalidArgument},
		"wraps around":     {edit(16, 1<<32-2), nil, errdefs.ErrInvalidArgument},
		"long":             {edit(20, 1<<32-1), nil, errdefs.ErrInvalidArgument},
		"large":            {certTable(t, kbs.SNPCertificate{Type: kbs.SNPVCEK, Data: make([]byte, kbs.MaxCertificate+1)}), nil, errdefs.ErrInvalidArgument},
		"too many":         {certTable(t, slices.Repeat([]kbs.SNPCertificate{one}, kbs.MaxCertificates+1)...), nil, errdefs.ErrInvalidArgument},
		"as many as there": {certTable(t, slices.Repeat([]kbs.SNPCertificate{one}, kbs.MaxCertificates)...), slices.Repeat([]kbs.SNPCertType{kbs.SNPVCEK}, kbs.MaxCertificates), nil},
	} {
		got, err := parseCertificates(tc.table)
		var kinds []kbs.SNPCertType
		for _, c := range got {
			kinds = append(kinds, c.Type)
		}
		if !errors.Is(err, tc.wantErr) || !slices.Equal(kinds, tc.want) {
			t.Errorf("%s: %v, %v", name, kinds, err)
		}
	}
}

// What is accepted must be what the library for such tables reads.
func FuzzParseCertificates(f *testing.F) {
	f.Add(certTable(f, kbs.SNPCertificate{Type: kbs.SNPVCEK, Data: []byte("chip")}, kbs.SNPCertificate{Type: kbs.SNPOther, Data: []byte("more")}))
	f.Add(make([]byte, 24))
	f.Fuzz(func(t *testing.T, table []byte) {
		got, err := parseCertificates(table)
		if err != nil {
			return
		}
		var want abi.CertTable
		if want.Unmarshal(table) != nil { // it is stricter on where certificates begin
			return
		}
		for _, c := range got {
			is := func(e abi.CertTableEntry) bool {
				return certificateKinds[e.GUID] == c.Type && bytes.Equal(e.RawCert, c.Data)
			}
			if len(c.Data) > kbs.MaxCertificate || !slices.ContainsFunc(want.Entries, is) {
				t.Errorf("%s of %d bytes is not in the table", c.Type, len(c.Data))
			}
		}
	})
}
