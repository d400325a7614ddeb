package doctor

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	shim "github.com/coffer-project/coffer/shim/config"
	"github.com/coffer-project/coffer/shim/vm/qemu"
)

const (
	qemuMajor   = 10
	installQEMU = "install QEMU 10 or later (Debian 12: qemu-system-x86 from bookworm-backports), or set hypervisor.path"
	buildGuest  = "install the guest image (cofferctl guest build), or correct hypervisor.kernel and hypervisor.initrd"
)

var qemuVersion = regexp.MustCompile(`version (\d+)\.(\d+)`)

func checkQEMU(ctx context.Context, x *Examination) []Finding {
	path := x.shim.Hypervisor.Path
	text, err := x.Host.Run(ctx, path, "--version")
	if err != nil {
		return fail(path+" does not run: "+oneLine(err), installQEMU)
	}
	found := qemuVersion.FindStringSubmatch(text)
	if found == nil {
		return warn(path+" names no version", installQEMU)
	}
	version := found[1] + "." + found[2]
	if major, _ := strconv.Atoi(found[1]); major < qemuMajor {
		return fail(fmt.Sprintf("%s is QEMU %s", path, version), installQEMU)
	}
	return ok(fmt.Sprintf("%s is QEMU %s", path, version))
}

// checkDevices looks for what every pod's machine is made of, and for what later ones may need.
func checkDevices(ctx context.Context, x *Examination) []Finding {
	path := x.shim.Hypervisor.Path
	devices, err := x.Host.Run(ctx, path, "-device", "help")
	if err != nil {
		return fail(path+" does not list its devices: "+oneLine(err), installQEMU)
	}
	objects, err := x.Host.Run(ctx, path, "-object", "help")
	if err != nil {
		return fail(path+" does not list its objects: "+oneLine(err), installQEMU)
	}
	needed := []string{"virtio-net-pci", "virtio-blk-pci"}
	switch x.shim.Hypervisor.Transport {
	case shim.TransportVsock:
		needed = append(needed, "vhost-vsock-pci")
	case shim.TransportSerial:
		needed = append(needed, "virtserialport")
	default:
		needed = append(needed, "vhost-vsock-pci", "virtserialport")
	}
	var missing []string
	for _, device := range needed {
		if !strings.Contains(devices, `"`+device+`"`) {
			missing = append(missing, device)
		}
	}
	if missing != nil {
		return fail("QEMU lacks "+strings.Join(missing, ", "), "install all of QEMU's modules; "+installQEMU)
	}
	return append(ok("QEMU has "+strings.Join(needed, ", ")), x.checkObjects(strings.Fields(objects))...)
}

// checkObjects looks for what confidential guests and devices are made of.
func (x *Examination) checkObjects(objects []string) []Finding {
	var has, lacks []string
	var faults []Finding
	for _, object := range []struct {
		name, since string
		needed      bool
	}{
		{qemu.NeedSNP.Type, qemu.NeedSNP.Since, x.shim.TEE == shim.TEESNP},
		{qemu.NeedTDX.Type, qemu.NeedTDX.Since, x.shim.TEE == shim.TEETDX},
		{"iommufd", "9.0", false},
	} {
		switch {
		case slices.Contains(objects, object.name):
			has = append(has, object.name)
		case object.needed:
			faults = append(faults, fail("QEMU has no "+object.name, "install QEMU "+object.since+" or newer, or correct hypervisor.path")...)
		default:
			lacks = append(lacks, object.name+" (since QEMU "+object.since+")")
		}
	}
	if faults != nil {
		return faults
	}
	return notApplicable(fmt.Sprintf("for confidential VMs and devices QEMU has: %s; lacks: %s", list(has), list(lacks)))
}

func list(words []string) string {
	if len(words) == 0 {
		return "nothing"
	}
	return strings.Join(words, ", ")
}

// checkGuestImage compares the image with the manifest that its builder left beside it.
func checkGuestImage(_ context.Context, x *Examination) []Finding {
	var faults []Finding
	sums := map[string]string{}
	for _, path := range []string{x.shim.Hypervisor.Kernel, x.shim.Hypervisor.Initrd} {
		if path == "" {
			continue
		}
		content, err := x.Host.ReadFile(path)
		if err == nil && len(content) == 0 {
			err = fmt.Errorf("%s is empty", path)
		}
		if err != nil {
			faults = append(faults, fail(oneLine(err), buildGuest)...)
			continue
		}
		sum := sha256.Sum256(content)
		sums[path] = hex.EncodeToString(sum[:])
	}
	if faults != nil {
		return faults
	}
	wanted, err := readManifest(x, filepath.Join(filepath.Dir(x.shim.Hypervisor.Kernel), "manifest.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return warn("kernel and initrd are there; no manifest.json beside them says what they should be", "copy the whole guest image, manifest.json too")
	}
	if err != nil {
		return warn("manifest of the guest image: "+oneLine(err), buildGuest)
	}
	for path, sum := range sums {
		want, known := wanted[filepath.Base(path)]
		switch {
		case !known:
			faults = append(faults, warn(path+" is not in the image's manifest", buildGuest)...)
		case want != sum:
			faults = append(faults, fail(path+" is not the file that was built: sha256 "+sum, buildGuest)...)
		}
	}
	if faults != nil {
		return faults
	}
	return ok(fmt.Sprintf("%s in %s match their manifest", plural(len(sums), "file"), filepath.Dir(x.shim.Hypervisor.Kernel)))
}

// readManifest returns the checksums by file name.
func readManifest(x *Examination, path string) (map[string]string, error) {
	raw, err := x.Host.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var manifest struct {
		Files []struct {
			Name   string `json:"name"`
			SHA256 string `json:"sha256"`
		} `json:"files"`
	}
	if err := json.Unmarshal(raw, &manifest); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	sums := map[string]string{}
	for _, file := range manifest.Files {
		sums[file.Name] = file.SHA256
	}
	return sums, nil
}

func checkAccelerator(ctx context.Context, x *Examination) []Finding {
	began := time.Now()
	accelerator, reason, err := x.Probes.Boot(ctx, x.shim)
	took := time.Since(began)
	finding := Finding{Micros: took.Microseconds()}
	const slow = "enable virtualization in the firmware, or nested virtualization in the hypervisor below; emulated pods are correct, and slow"
	switch {
	case err != nil:
		finding.Status, finding.Fact = Fail, oneLine(err)
		finding.Cure = "see the checks of QEMU and the guest image; hypervisor.accelerator = \"tcg\" needs no hardware"
	case accelerator == "kvm" && x.shim.Hypervisor.Accelerator == shim.AcceleratorKVM:
		finding.Status, finding.Fact = OK, "hypervisor.accelerator is kvm, and /dev/kvm can be opened"
	case accelerator == "kvm":
		finding.Status, finding.Fact = OK, fmt.Sprintf("the guest kernel boots under KVM (asked for %s, found out in %s)", x.shim.Hypervisor.Accelerator, round(took))
	case reason == "":
		finding.Status, finding.Fact, finding.Cure = Warn, "hypervisor.accelerator is tcg: guests are emulated", "set hypervisor.accelerator = \"auto\""
	default:
		finding.Status, finding.Fact, finding.Cure = Warn, fmt.Sprintf("KVM does not work, guests are emulated: %s (found out in %s)", reason, round(took)), slow
	}
	return []Finding{finding}
}

func round(d time.Duration) time.Duration { return d.Round(time.Millisecond) }
