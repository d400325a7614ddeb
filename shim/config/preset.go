package config

import (
	"embed"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"
)

//go:embed presets
var presetFiles embed.FS

// presets are the overlays on Default by name, in the order in which they are laid.
var presets = map[string][]string{
	"plain":   {},
	"gpu":     {"gpu"},
	"snp":     {"snp"},
	"tdx":     {"tdx"},
	"gpu-snp": {"gpu", "snp"},
	"gpu-tdx": {"gpu", "tdx"},
}

// Presets lists the names that the key preset knows.
func Presets() []string { return slices.Sorted(maps.Keys(presets)) }

// Preset is the configuration that an empty file with this preset stands for. An unknown name is errdefs.ErrInvalidArgument.
func Preset(name string) (*Config, error) {
	overlays, known := presets[name]
	if !known {
		return nil, fmt.Errorf("preset: %q is none of %s: %w", name, strings.Join(Presets(), ", "), errdefs.ErrInvalidArgument)
	}
	config := Default()
	for _, overlay := range overlays {
		raw, err := PresetText(overlay)
		if err != nil {
			return nil, err
		}
		if err := decode([]byte(raw), config); err != nil {
			return nil, fmt.Errorf("preset %s: %w", overlay, err)
		}
	}
	config.Preset = name
	return config, nil
}

// PresetText is the text of one overlay: gpu, snp or tdx.
func PresetText(overlay string) (string, error) {
	raw, err := presetFiles.ReadFile("presets/" + overlay + ".toml")
	if err != nil {
		return "", fmt.Errorf("preset %s: %w", overlay, err)
	}
	return string(raw), nil
}

// namedPreset is the preset that the last of the files names which names one; "plain" when none does. Faults of a file
// are for its proper reading to find.
func namedPreset(files [][]byte) string {
	name := "plain"
	for _, raw := range files {
		var named struct {
			Preset *string `toml:"preset"`
		}
		if toml.Unmarshal(raw, &named) == nil && named.Preset != nil {
			name = *named.Preset
		}
	}
	return name
}
