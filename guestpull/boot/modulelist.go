package boot

import (
	"bufio"
	"bytes"
	"fmt"
	"path"
	"strings"

	"github.com/containerd/errdefs"
)

// modulesFile is where the image builder puts the load order: one module per line, dependencies before dependants,
//
//	STAGE required|optional CONDITION PATH
//
// CONDITION is "-", or "virtio:N" when the module only serves virtio devices of type N (decimal), or "path:P" when it
// only serves a machine that has the path P, or "cpu:F" when it only serves a CPU with the flag F in /proc/cpuinfo.
const modulesFile = "/etc/coffer/modules"

// maxModulesFile bounds that file, in bytes.
const maxModulesFile = 64 << 10

// The stages: transport is loaded before Init returns; disks and then devices beside the start of the guest's server,
// disks first because initdata is on one; those of onDemand and a module's name when the kernel asks for it; everything
// else when a part of the guest asks.
const (
	stageTransport = "transport"
	stageDisks     = "disks"
	stageDevices   = "devices"
	onDemand       = "on:"
)

// module is one line of the load order.
type module struct {
	stage     string
	required  bool
	condition string
	path      string
}

// parseModules reads the load order.
func parseModules(data []byte) ([]module, error) {
	var list []module
	lines := bufio.NewScanner(bytes.NewReader(data))
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		m, err := parseModule(line)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		list = append(list, m)
	}
	return list, lines.Err()
}

func parseModule(line string) (module, error) {
	words := strings.Fields(line)
	if len(words) != 4 {
		return module{}, fmt.Errorf("%d words instead of 4: %w", len(words), errdefs.ErrInvalidArgument)
	}
	m := module{stage: words[0], required: words[1] == "required", condition: words[2], path: words[3]}
	if !m.required && words[1] != "optional" {
		return module{}, fmt.Errorf("neither required nor optional: %w", errdefs.ErrInvalidArgument)
	}
	if kind, _, found := strings.Cut(m.condition, ":"); m.condition != "-" && (!found || !isCondition(kind)) {
		return module{}, fmt.Errorf("unknown condition %q: %w", m.condition, errdefs.ErrInvalidArgument)
	}
	if !strings.HasPrefix(m.path, "/lib/modules/") || path.Clean(m.path) != m.path {
		return module{}, fmt.Errorf("module %q is outside /lib/modules: %w", m.path, errdefs.ErrInvalidArgument)
	}
	return m, nil
}

func isCondition(kind string) bool {
	return kind == "virtio" || kind == "path" || kind == "cpu"
}

// readModules reads the image's load order.
func readModules() ([]module, error) {
	data, err := readLimited(modulesFile, maxModulesFile)
	if err != nil {
		return nil, fmt.Errorf("read the image's module list: %w", err)
	}
	list, err := parseModules(data)
	if err != nil {
		return nil, fmt.Errorf("read the image's module list %s: %w", modulesFile, err)
	}
	return list, nil
}
