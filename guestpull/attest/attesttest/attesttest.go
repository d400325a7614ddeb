// Package attesttest is a kernel in memory whose TEE says what a test wants. It stands behind the client interface of go-configfs-tsm, whose
// own fake keeps the rules of the real interface: entries, generations, sizes.
package attesttest

import (
	"bytes"
	"crypto/rand"
	"os"
	"sync"
	"syscall"

	"github.com/google/go-configfs-tsm/configfs/configfsi"
	"github.com/google/go-configfs-tsm/configfs/faketsm"
)

// Report makes a report over a whole report data field: what the kernel shows in outblob and auxblob.
type Report func(reportData []byte) (out, aux []byte, err error)

// Kernel is the reports folder of one machine's configfs.
type Kernel struct {
	configfsi.Client
	fake *faketsm.ReportSubsystem

	mu      sync.Mutex
	entries []string // folders that were made and not yet removed
}

// New returns the kernel of a machine whose TEE has the driver provider. An empty provider is a machine without such a driver.
func New(provider string, report Report) *Kernel {
	k := &Kernel{fake: faketsm.Report611(0)}
	make611 := k.fake.MakeEntry
	k.fake.MakeEntry = func() *faketsm.ReportEntry {
		entry := make611()
		entry.ROAttrs = map[string][]byte{"provider": []byte(provider + "\n")} // the fake shows it only after a write
		return entry
	}
	k.fake.ReadAttr = func(e *faketsm.ReportEntry, attr string) ([]byte, error) {
		if attr == "provider" {
			return []byte(provider + "\n"), nil
		}
		in := e.InAttrs["inblob"].Value
		if len(in) != 64 { // both drivers refuse other sizes
			return nil, syscall.EINVAL
		}
		out, aux, err := report(bytes.Clone(in))
		switch {
		case err != nil:
			return nil, err
		case attr == "outblob":
			return out, nil
		case attr == "auxblob" && provider == "sev_guest":
			return aux, nil
		}
		return nil, os.ErrNotExist
	}
	k.fake.Random = rand.Reader
	k.Client = &faketsm.Client{Subsystems: map[string]configfsi.Client{"report": k.fake}}
	if provider == "" {
		k.Client = noDriver{k.Client}
	}
	return k
}

// Entries returns how many folders are there: 0 when nobody asks for a report.
func (k *Kernel) Entries() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.entries)
}

// MkdirTemp implements configfsi.Client.
func (k *Kernel) MkdirTemp(dir, pattern string) (string, error) {
	name, err := k.Client.MkdirTemp(dir, pattern)
	if err == nil {
		k.mu.Lock()
		defer k.mu.Unlock()
		k.entries = append(k.entries, name)
	}
	return name, err
}

// RemoveAll implements configfsi.Client.
func (k *Kernel) RemoveAll(path string) error {
	err := k.Client.RemoveAll(path)
	if err == nil {
		k.mu.Lock()
		defer k.mu.Unlock()
		kept := k.entries[:0]
		for _, name := range k.entries {
			if name != path {
				kept = append(kept, name)
			}
		}
		k.entries = kept
	}
	return err
}

// noDriver is what a kernel does as long as no driver has registered.
type noDriver struct{ configfsi.Client }

func (noDriver) MkdirTemp(dir, _ string) (string, error) {
	return "", &os.PathError{Op: "mkdir", Path: dir, Err: syscall.ENXIO}
}
