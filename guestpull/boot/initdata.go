package boot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/proto/initdata"
)

// InitData is the document that configures this guest: where the key broker is, which certificates to trust, what the
// policy allows.
type InitData struct {
	// Raw is the text whose digest counts.
	Raw []byte
	// Document is what Raw says.
	Document *initdata.Document
	// Algorithm and Digest are the document's own digest.
	Algorithm string
	Digest    []byte
	// Bound is true when the kernel command line carried this very digest.
	Bound bool
}

// virtioBlock is the virtio device type of disks.
const virtioBlock = "2"

// diskMagic starts an initdata disk.
const diskMagic = "initdata"

// maxDisks bounds how many disks are looked at; a pod has a handful.
const maxDisks = 256

// InitData finds the initdata disk, decodes it within limits, and compares its digest with the one on the kernel command
// line. Without a disk it returns nil, unless the command line asks for a digest. Two such disks, a damaged one, and one
// with another digest are refused with errdefs.ErrFailedPrecondition.
func (m *Machine) InitData(ctx context.Context) (*InitData, error) {
	if m.Params.InitDataDigest.Algorithm == "" && !hasVirtio(virtioBus, virtioBlock) {
		return nil, nil // nothing to wait for
	}
	if err := m.modules.disks.wait(ctx); err != nil {
		return nil, err
	}
	disks, err := findDisks("/sys/block", "/dev")
	if err != nil {
		return nil, err
	}
	return readInitData(disks, m.Params.InitDataDigest)
}

// findDisks returns the device nodes of disks that start with the magic, in order of name.
func findDisks(sysBlock, dev string) ([]string, error) {
	entries, err := os.ReadDir(sysBlock)
	if err != nil {
		return nil, fmt.Errorf("list disks: %w", err)
	}
	var found []string
	for _, entry := range entries[:min(len(entries), maxDisks)] {
		name := entry.Name()
		if !strings.HasPrefix(name, "vd") && !strings.HasPrefix(name, "sd") {
			continue
		}
		node := filepath.Join(dev, name)
		is, err := isInitDataDisk(node)
		if err != nil {
			return nil, fmt.Errorf("read disk %s: %w", name, err)
		}
		if is {
			found = append(found, node)
		}
	}
	slices.Sort(found)
	return found, nil
}

func isInitDataDisk(node string) (bool, error) {
	f, err := os.Open(node)
	if err != nil {
		return false, err
	}
	defer f.Close()
	head := make([]byte, len(diskMagic))
	switch _, err := io.ReadFull(f, head); {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return false, nil // too small to be anything
	case err != nil:
		return false, err
	}
	return string(head) == diskMagic, nil
}

// readInitData decodes the one disk and compares its digest.
func readInitData(disks []string, want InitDataDigest) (*InitData, error) {
	switch {
	case len(disks) > 1:
		return nil, fmt.Errorf("%d initdata disks instead of one: %w", len(disks), errdefs.ErrFailedPrecondition)
	case len(disks) == 0 && want.Algorithm != "":
		return nil, fmt.Errorf("no initdata disk, but the kernel command line asks for one: %w", errdefs.ErrFailedPrecondition)
	case len(disks) == 0:
		return nil, nil
	}
	f, err := os.Open(disks[0])
	if err != nil {
		return nil, fmt.Errorf("open initdata disk: %w", err)
	}
	defer f.Close()
	data, err := decodeInitData(f)
	if err != nil {
		return nil, fmt.Errorf("read initdata disk: %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	if want.Algorithm == "" {
		return data, nil
	}
	if want.Algorithm != data.Algorithm || !bytes.Equal(want.Sum, data.Digest) {
		return nil, fmt.Errorf("initdata has another digest than the kernel command line asks for: %w", errdefs.ErrFailedPrecondition)
	}
	data.Bound = true
	return data, nil
}

func decodeInitData(disk io.Reader) (*InitData, error) {
	raw, err := initdata.DecodeDisk(disk)
	if err != nil {
		return nil, err
	}
	document, err := initdata.Parse(raw)
	if err != nil {
		return nil, err
	}
	algorithm, sum, err := initdata.Digest(raw)
	if err != nil {
		return nil, err
	}
	return &InitData{Raw: raw, Document: document, Algorithm: algorithm, Digest: sum}, nil
}
