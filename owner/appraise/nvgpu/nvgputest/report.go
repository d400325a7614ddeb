package nvgputest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/coffer-project/coffer/proto/kbs"
)

// Report returns the device's exchange on a nonce of kbs.NVIDIANonce bytes, with a zero after its end, as drivers hand it out.
func (d *Device) Report(nonce []byte) ([]byte, error) {
	out := append([]byte{0x11, 0xe0, 1, 0xff}, nonce...)
	out = append(out, 0) // slot
	var record []byte
	for _, index := range slices.Sorted(maps.Keys(d.Measurements)) {
		value := d.Measurements[index]
		record = append(record, index, 1)
		record = binary.LittleEndian.AppendUint16(record, uint16(3+len(value)))
		record = append(record, 1)
		record = append(binary.LittleEndian.AppendUint16(record, uint16(len(value))), value...)
	}
	out = append(out, 0x11, 0x60, 0, 0, byte(len(d.Measurements)), byte(len(record)), byte(len(record)>>8), byte(len(record)>>16))
	out = append(append(out, record...), bytes.Repeat([]byte{0xd0}, kbs.NVIDIANonce)...)
	opaque, err := d.opaque()
	if err != nil {
		return nil, err
	}
	out = append(binary.LittleEndian.AppendUint16(out, uint16(len(opaque))), opaque...)
	digest := sha512.Sum384(out)
	r, s, err := ecdsa.Sign(rand.Reader, d.leaf.key, digest[:])
	if err != nil {
		return nil, fmt.Errorf("sign forged report: %w", err)
	}
	out = append(append(out, r.FillBytes(make([]byte, 48))...), s.FillBytes(make([]byte, 48))...)
	return append(out, 0), nil
}

func (d *Device) opaque() ([]byte, error) {
	version, err := hex.DecodeString(strings.ReplaceAll(d.VBIOS, ".", ""))
	if err != nil || len(version) != 5 {
		return nil, fmt.Errorf("version %q of forged firmware is not five pairs of hexadecimal digits", d.VBIOS)
	}
	entries := map[uint16][]byte{
		3: []byte(d.Driver + "\x00"), 6: {version[3], version[2], version[1], version[0], version[4], 0, 0, 0}, 11: {0x55},
		15: []byte("882\x00"), 17: []byte("1010\x00"), 18: []byte("0200\x00"), 20: d.FWID, 34: {1, 0}, 36: {0, 0},
	}
	if d.Arch == kbs.NVIDIALS10 {
		entries = map[uint16][]byte{6: []byte(d.VBIOS), 22: {1, 2, 3, 4, 5, 6, 7, 8}}
	}
	maps.Copy(entries, d.Opaque)
	var out []byte
	for _, kind := range slices.Sorted(maps.Keys(entries)) {
		if value := entries[kind]; value != nil {
			out = binary.LittleEndian.AppendUint16(out, kind)
			out = append(binary.LittleEndian.AppendUint16(out, uint16(len(value))), value...)
		}
	}
	return out, nil
}

// Evidence returns the evidence of devices on one session's report data, as a guest sends it.
func Evidence(reportData []byte, devices ...*Device) (json.RawMessage, error) {
	nonce := make([]byte, kbs.NVIDIANonce)
	copy(nonce, reportData)
	var evidence kbs.NVIDIAEvidence
	for _, d := range devices {
		report, err := d.Report(nonce)
		if err != nil {
			return nil, err
		}
		entry, err := kbs.NewNVIDIADevice(d.Arch, d.UUID, report, d.Chain())
		if err != nil {
			return nil, err
		}
		evidence.Devices = append(evidence.Devices, entry)
	}
	raw, err := json.Marshal(evidence)
	if err != nil {
		return nil, fmt.Errorf("encode forged evidence: %w", err)
	}
	return raw, nil
}
