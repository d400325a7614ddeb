package tee

import (
	"io"
	"os"

	"github.com/klauspost/cpuid/v2"

	"github.com/coffer-project/coffer/proto/ovmf"
)

// Host is the machine that guests are launched on.
type Host interface {
	// ReadFile reads a file that is at most some MiB large.
	ReadFile(path string) ([]byte, error)
	// Stat fails unless there is something at path.
	Stat(path string) error
	// SEV is what the processor says about memory encryption.
	SEV() SEV
}

// SEV is CPUID function 0x8000001F (AMD64 Architecture Programmer's Manual, volume 3, appendix E.4.17).
type SEV struct {
	// SNP says that the processor has SEV-SNP.
	SNP bool
	// CBitPos is the bit of an address that marks a private page.
	CBitPos uint32
}

// Machine is the real one.
type Machine struct{}

var _ Host = Machine{}

// ReadFile implements Host. What is larger than any firmware is cut.
func (Machine) ReadFile(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return io.ReadAll(io.LimitReader(file, ovmf.MaxImage+1))
}

// Stat implements Host.
func (Machine) Stat(path string) error {
	_, err := os.Stat(path)
	return err
}

// SEV implements Host.
func (Machine) SEV() SEV {
	found := cpuid.CPU.AMDMemEncryption
	return SEV{SNP: cpuid.CPU.Supports(cpuid.SEV_SNP), CBitPos: found.CBitPossition}
}
