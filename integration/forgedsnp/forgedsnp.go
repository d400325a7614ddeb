// Package forgedsnp plays a host with SNP processors on a machine that has none, so that measured guests can be tried anywhere. It PROTECTS
// NOTHING: reports are signed by a key that it makes up, and no broker believes them but one whose configuration names its roots
// (insecure_snp_test_roots_file); a guest asks it only if its measured document lists the kind forged-snp.
//
// A launcher stands where the shim expects QEMU. It has this package measure what QEMU is about to be given (kernel, initrd, command line and
// number of processors, each read anew for each VM) and then becomes QEMU, with one more virtio serial port, behind which the guest gets
// reports with that measurement. As a real host would, the launcher hands the digest of initdata to the processor as HOST_DATA and not to the kernel.
//
// Two things are not as in life: the firmware in the digest is the end of an OVMF build for SEV, while QEMU boots its own, and the memory of
// the VM is as open to the host as that of any other.
package forgedsnp

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/google/go-sev-guest/abi"
	"github.com/google/uuid"

	"github.com/coffer-project/coffer/owner/appraise"
	"github.com/coffer-project/coffer/owner/appraise/snp/snptest"
	"github.com/coffer-project/coffer/proto/ovmf/ovmftest"
)

// CPU is the processor that is played, by QEMU's name; its product line is Milan.
const (
	CPU     = "EPYC-Milan"
	product = "Milan"
)

// Host is the processor of one node, and what launches VMs on it.
type Host struct {
	// Launcher is the program to run in place of QEMU.
	Launcher string
	// Roots is the file with the roots in PEM under which reports are signed.
	Roots string
	// Firmware is the file that is measured as the VMs' firmware.
	Firmware string

	signer   *snptest.Signer
	listener net.Listener
	group    sync.WaitGroup

	mu     sync.Mutex
	closed bool
	conns  map[net.Conn]bool
}

// Start plays a host in dir, whose path must be short, with the QEMU at the given path. The calling program must begin with Intercept.
func Start(dir, qemu string) (*Host, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find own program: %w", err)
	}
	h := &Host{
		Launcher: filepath.Join(dir, "forged-snp"), Roots: filepath.Join(dir, "forged-roots.pem"), Firmware: filepath.Join(dir, "forged-firmware.fd"),
		conns: map[net.Conn]bool{},
	}
	if h.signer, err = snptest.New(product); err != nil {
		return nil, err
	}
	if err := errors.Join(os.WriteFile(h.Roots, h.signer.Roots(), 0o600), os.WriteFile(h.Firmware, ovmftest.AmdSev(), 0o600)); err != nil {
		return nil, err
	}
	socket := filepath.Join(dir, "forged-snp.sock")
	if h.listener, err = net.Listen("unix", socket); err != nil {
		return nil, err
	}
	script := fmt.Sprintf("#!/bin/sh\nexec '%s' %s '%s' '%s' \"$@\"\n", self, launchArg, socket, qemu)
	if err := os.WriteFile(h.Launcher, []byte(script), 0o700); err != nil {
		return nil, errors.Join(err, h.listener.Close())
	}
	h.group.Go(h.serve)
	return h, nil
}

// Values are the firmware versions of the processor, as reference values.
func (h *Host) Values() map[string]uint8 {
	return map[string]uint8{
		appraise.RefSNPBootloader: h.signer.TCB.Bootloader, appraise.RefSNPTEE: h.signer.TCB.TEE,
		appraise.RefSNPFirmware: h.signer.TCB.SNP, appraise.RefSNPMicrocode: h.signer.TCB.Microcode,
	}
}

// Close ends all VMs' reports.
func (h *Host) Close() error {
	err := h.listener.Close()
	h.mu.Lock()
	h.closed = true
	for conn := range h.conns {
		conn.Close()
	}
	h.mu.Unlock()
	h.group.Wait()
	return err
}

func (h *Host) serve() {
	for {
		conn, err := h.listener.Accept()
		if err != nil {
			return
		}
		h.mu.Lock()
		if h.closed {
			conn.Close()
		}
		h.conns[conn] = true
		h.mu.Unlock()
		h.group.Go(func() {
			defer func() {
				conn.Close()
				h.mu.Lock()
				defer h.mu.Unlock()
				delete(h.conns, conn)
			}()
			h.guest(conn)
		})
	}
}

// guest launches one VM and answers it until its end. Whoever is at the other end sees an error as the end of the connection.
func (h *Host) guest(conn net.Conn) {
	in := bufio.NewReader(conn)
	line, err := in.ReadBytes('\n')
	if err != nil {
		return
	}
	var request launch
	if err := json.Unmarshal(line, &request); err != nil {
		return
	}
	report, answer := h.launch(request)
	raw, err := json.Marshal(answer)
	if err != nil {
		return
	}
	if _, err := conn.Write(append(raw, '\n')); err != nil || answer.Error != "" {
		return
	}
	table := (&abi.CertTable{Entries: []abi.CertTableEntry{{GUID: uuid.MustParse(abi.VcekGUID), RawCert: h.signer.Certificate()}}}).Marshal()
	for {
		report.ReportData = make([]byte, abi.ReportDataSize)
		if _, err := io.ReadFull(in, report.ReportData); err != nil {
			return
		}
		signed, err := h.signer.Sign(report)
		if err != nil {
			return
		}
		out := binary.LittleEndian.AppendUint32(nil, uint32(len(signed)))
		out = binary.LittleEndian.AppendUint32(append(out, signed...), uint32(len(table)))
		if _, err := conn.Write(append(out, table...)); err != nil {
			return
		}
	}
}

// ChangeByte copies a guest's initrd with one byte changed: a digit of the time in its first header, which no guest looks at.
func ChangeByte(from, to string) error {
	const magic, timeDigit = "070701", 53 // cpio(5), "New ASCII Format": c_mtime is at 46 to 53
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if !strings.HasPrefix(string(content[:min(len(content), timeDigit+1)]), magic) || len(content) <= timeDigit {
		return fmt.Errorf("%s does not begin with a cpio header", from)
	}
	content[timeDigit] ^= 1 // a hexadecimal digit becomes its neighbour
	return os.WriteFile(to, content, 0o600)
}
