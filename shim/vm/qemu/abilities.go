package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/coffer-project/coffer/shim/vm"
	"github.com/coffer-project/coffer/shim/vm/qemu/qmp"
)

const (
	// abilitiesFile keeps what a QEMU said of itself.
	abilitiesFile = "abilities.json"
	// abilitiesTimeout bounds the question; QEMU answers in a tenth of a second.
	abilitiesTimeout = 20 * time.Second
)

// The types of objects that not every QEMU has.
const (
	typeSNP   = "sev-snp-guest"
	typeTDX   = "tdx-guest"
	typeMemfd = "memory-backend-memfd"
	typeVFIO  = "vfio-pci"
	typeIOMMU = "iommufd"
	// typeShares tells devices which of a confidential guest's memory is shared, and so may be reached.
	typeShares = "ram-block-attributes"
)

// Need is a type of QEMU's that a VM cannot do without.
type Need struct {
	// Type is its name in QEMU, Since the first release that has it, and For what needs it.
	Type, Since, For string
}

// Needs of confidential guests.
var (
	NeedSNP = Need{Type: typeSNP, Since: "9.1", For: "AMD SEV-SNP"}
	NeedTDX = Need{Type: typeTDX, Since: "10.1", For: "Intel TDX"}
)

// needs are those of a VM beyond what every supported QEMU has.
func needs(config vm.Config) (all []Need) {
	if config.Memory.Shared || config.Memory.HugePageMiB > 0 {
		all = append(all, Need{Type: typeMemfd, Since: "2.12", For: "shared memory and huge pages"})
	}
	if len(config.PCIDevices) > 0 {
		all = append(all, Need{Type: typeVFIO, Since: "1.3", For: "physical devices"})
	}
	if slices.ContainsFunc(config.PCIDevices, func(d vm.PCIDevice) bool { return d.OwnNode }) {
		all = append(all, Need{Type: typeIOMMU, Since: "9.0", For: "physical devices with nodes of their own"})
	}
	if len(config.PCIDevices) > 0 && config.Confidential != nil {
		all = append(all, Need{Type: typeShares, Since: "10.1", For: "physical devices of confidential guests"})
	}
	if c := config.Confidential; c != nil && c.SNP != nil {
		all = append(all, NeedSNP)
	} else if c != nil {
		all = append(all, NeedTDX)
	}
	return all
}

// abilities are what one QEMU binary can do, and the binary that they hold for.
type abilities struct {
	// QEMU identifies the binary: path, size and time of change.
	QEMU    string   `json:"qemu"`
	Version string   `json:"version"`
	Types   []string `json:"types"`
}

// Require tells whether the installed QEMU has all types. Otherwise it fails with errdefs.ErrFailedPrecondition, naming
// what is missing and the release that has it. The answer is remembered until the binary changes.
func (d *Driver) Require(ctx context.Context, needs ...Need) error { return d.require(ctx, needs) }

func (d *Driver) require(ctx context.Context, needs []Need) error {
	if len(needs) == 0 {
		return nil
	}
	have, err := d.abilities(ctx)
	if err != nil {
		return fmt.Errorf("ask QEMU what it can do: %w", err)
	}
	var faults []error
	for _, need := range needs {
		if !slices.Contains(have.Types, need.Type) {
			faults = append(faults, fmt.Errorf("%w: %s: %s needs QEMU %s or newer; %s is %s",
				errdefs.ErrFailedPrecondition, need.For, need.Type, need.Since, d.options.Binary, have.Version))
		}
	}
	return errors.Join(faults...)
}

// abilities returns what is remembered of the binary, or asks it. Two processes may ask at once, and both are right.
func (d *Driver) abilities(ctx context.Context) (abilities, error) {
	binary, err := identity(d.options.Binary)
	if err != nil {
		return abilities{}, err
	}
	path := filepath.Join(d.options.CacheDir, abilitiesFile)
	if raw, err := os.ReadFile(path); err == nil {
		var known abilities
		if json.Unmarshal(raw, &known) == nil && known.QEMU == binary && len(known.Types) > 0 {
			return known, nil
		}
	}
	found, err := survey(ctx, d.options.Binary)
	if err != nil {
		return abilities{}, err
	}
	found.QEMU = binary
	if err := remember(path, found); err != nil {
		// It is asked again next time.
		log.G(ctx).WithError(err).Warn("cannot remember what qemu can do")
	}
	return found, nil
}

func remember(path string, found abilities) error {
	raw, err := json.Marshal(found)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return writeFile(path, raw)
}

// survey starts a QEMU without a machine, whose monitor lists all types that it has, those in modules too.
func survey(ctx context.Context, binary string) (_ abilities, retErr error) {
	ctx, cancel := context.WithTimeout(ctx, abilitiesTimeout)
	defer cancel()
	conn, file, err := pair("qmp")
	if err != nil {
		return abilities{}, err
	}
	defer file.Close()
	p, err := spawn(binary, []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-machine", "none",
		"-chardev", fmt.Sprintf("socket,id=qmp,fd=%d", firstFD), "-mon", "chardev=qmp,mode=control",
	}, spawnOptions{files: []*os.File{file}})
	if err != nil {
		conn.Close()
		return abilities{}, err
	}
	file.Close()
	defer func() {
		p.kill()
		<-p.done
		if said := p.stderr.last(stderrLines); retErr != nil && len(said) > 0 {
			retErr = fmt.Errorf("%w; it said: %s", retErr, quote(said))
		}
	}()
	monitor, err := qmp.New(ctx, conn)
	if err != nil {
		return abilities{}, err
	}
	defer monitor.Close()
	go func() {
		for range monitor.Events() { // nobody hears them
		}
	}()
	return interview(ctx, monitor)
}

func interview(ctx context.Context, monitor *qmp.Client) (abilities, error) {
	var version struct {
		QEMU struct{ Major, Minor, Micro int }
	}
	if err := monitor.Execute(ctx, "query-version", nil, &version); err != nil {
		return abilities{}, err
	}
	found := abilities{Version: fmt.Sprintf("%d.%d.%d", version.QEMU.Major, version.QEMU.Minor, version.QEMU.Micro)}
	for _, kind := range []string{"user-creatable", "device"} {
		var types []struct{ Name string }
		arguments := map[string]any{"implements": kind, "abstract": false}
		if err := monitor.Execute(ctx, "qom-list-types", arguments, &types); err != nil {
			return abilities{}, err
		}
		for _, t := range types {
			// The processor models are the most of what there is, and are named otherwise on the command line.
			if !strings.HasSuffix(t.Name, "-x86_64-cpu") {
				found.Types = append(found.Types, t.Name)
			}
		}
	}
	slices.Sort(found.Types)
	return found, nil
}
