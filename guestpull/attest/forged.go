package attest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
	"github.com/google/go-configfs-tsm/report"

	"github.com/coffer-project/coffer/proto/initdata"
	"github.com/coffer-project/coffer/proto/kbs"
)

// ForgerPort is the name of the virtio serial port behind which a forger answers.
const ForgerPort = "coffer.forged-snp.0"

// forgedProvider stands where a real TEE's driver would.
const forgedProvider = "forged"

// maxForged bounds each part of a forger's answer in bytes: what SNP evidence may hold.
const maxForged = kbs.MaxCertificates * kbs.MaxCertificate

// NewForged returns the Platform of a machine without a TEE whose host plays an SNP processor: its reports have a real one's form, and
// are signed by nobody whom a broker believes, unless the broker's own configuration names that forger's roots (insecure_snp_test_roots_file).
// Measurements and appraisal can be tried with it where there is no such processor. It protects nothing.
//
// The forger behind port is sent 64 bytes of report data for each report, and answers with the report and with the table of certificates, each
// after its length in four bytes, little-endian.
func NewForged(port io.ReadWriter) *TSM {
	get := func(inBlob []byte) (*report.Response, error) {
		if _, err := port.Write(inBlob); err != nil {
			return nil, fmt.Errorf("ask the forger: %w", err)
		}
		response := &report.Response{Provider: forgedProvider}
		for _, part := range []*[]byte{&response.OutBlob, &response.AuxBlob} {
			var err error
			if *part, err = readForged(port); err != nil {
				return nil, fmt.Errorf("read the forger's answer: %w", err)
			}
		}
		parsed, err := kbs.ParseSNPReport(response.OutBlob)
		if err != nil {
			return nil, err
		}
		if !bytes.Equal(parsed.ReportData, inBlob) {
			return nil, fmt.Errorf("the forger answered another request: %w", errdefs.ErrUnavailable)
		}
		return response, nil
	}
	return &TSM{tee: kbs.TEESNP, kind: initdata.ForgedSNP, provider: forgedProvider, get: get, turn: make(chan struct{}, 1)}
}

func readForged(port io.Reader) ([]byte, error) {
	var size [4]byte
	if _, err := io.ReadFull(port, size[:]); err != nil {
		return nil, err
	}
	n := binary.LittleEndian.Uint32(size[:])
	if n > maxForged {
		return nil, fmt.Errorf("%d bytes, more than %d: %w", n, maxForged, errdefs.ErrInvalidArgument)
	}
	part := make([]byte, n)
	_, err := io.ReadFull(port, part)
	return part, err
}
