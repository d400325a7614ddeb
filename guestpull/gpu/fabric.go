package gpu

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
)

// Paths of the programs that manage NVLinks and of their settings, after NVRC.
const (
	fabricManager  = "bin/nv-fabricmanager"
	fabricSettings = "usr/share/nvidia/nvswitch/fabricmanager.cfg"
	fabricCopy     = "run/fabricmanager.cfg"
	subnetManager  = "sbin/nvlsm"
	subnetSettings = "usr/share/nvidia/nvlsm/nvlsm.conf"
)

// fabricReady is what the fabric manager says once it works.
const fabricReady = "FM starting NvLink Inband"

// maxSettings bounds a file of settings, in bytes.
const maxSettings = 1 << 20

// How the fabric manager works: for the GPUs of its own guest, or for those of others.
const (
	fabricOwn    = "0"
	fabricShared = "1"
)

// fabric is how the NVLinks of a mode are managed.
type fabric struct {
	mode, railPolicy string
	subnet           bool // by NVLSM, over the network cards that lead to the switches
}

var fabrics = map[Mode]fabric{
	ModeNVL4:        {fabricOwn, "greedy", false},
	ModeNVL5:        {fabricOwn, "symmetric", true},
	ModeServiceNVL4: {fabricShared, "greedy", false},
	ModeServiceNVL5: {fabricShared, "symmetric", true},
}

// settings writes the fabric manager's settings for this mode and returns their path.
func (f fabric) settings(p place) (string, error) {
	in, err := os.Open(p.file(fabricSettings))
	if err != nil {
		return "", fmt.Errorf("settings of the fabric manager: %w", err)
	}
	defer in.Close()
	text, err := io.ReadAll(io.LimitReader(in, maxSettings+1))
	if err != nil || len(text) > maxSettings {
		return "", fmt.Errorf("settings of the fabric manager cannot be read or have more than %d bytes: %w", maxSettings, errdefs.ErrFailedPrecondition)
	}
	file := filepath.Join(p.root, fabricCopy)
	out := set(string(text), "FABRIC_MODE", f.mode)
	out = set(out, "PARTITION_RAIL_POLICY", f.railPolicy)
	if err := os.WriteFile(file, []byte(out), 0o400); err != nil {
		return "", fmt.Errorf("settings of the fabric manager: %w", err)
	}
	return file, nil
}

// set replaces KEY=… in every line that has it, or adds a line.
func set(text, key, value string) string {
	lines, found := strings.Split(strings.TrimRight(text, "\n"), "\n"), false
	for i, line := range lines {
		if name, _, is := strings.Cut(strings.TrimSpace(line), "="); is && strings.TrimSpace(name) == key {
			lines[i], found = key+"="+value, true
		}
	}
	if !found {
		lines = append(lines, key+"="+value)
	}
	return strings.Join(lines, "\n") + "\n"
}

// smDisabled is the bit of a port's abilities that forbids to manage its subnet.
const smDisabled = 1 << 10

// portGUID finds the first port, in order of name, that a subnet can be managed over. The folder is the kernel's, sys/class/infiniband.
func portGUID(ports string) (string, error) {
	entries, err := os.ReadDir(ports)
	if err != nil {
		return "", fmt.Errorf("list network cards that lead to NVSwitches: %w", err)
	}
	for _, entry := range entries {
		port := filepath.Join(ports, entry.Name(), "ports/1")
		mask, err := attribute(port, "cap_mask")
		if err != nil {
			continue
		}
		abilities, err := strconv.ParseUint(mask, 0, 32)
		if err != nil || abilities&smDisabled != 0 {
			continue
		}
		address, err := attribute(port, "gids/0")
		if err != nil {
			continue
		}
		// The GUID is the second half of the address.
		if words := strings.Split(address, ":"); len(words) == 8 {
			if guid := strings.Join(words[4:], ""); isHex(guid) {
				return "0x" + guid, nil
			}
		}
	}
	return "", fmt.Errorf("none of %d network cards has a port to manage NVSwitches over: %w", len(entries), errdefs.ErrFailedPrecondition)
}

func isHex(text string) bool {
	_, err := strconv.ParseUint(text, 16, 64)
	return err == nil && len(text) == 16
}
