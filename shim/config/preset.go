package config

import (
	"bytes"
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
	texts, err := overlays(name)
	if err != nil {
		return nil, err
	}
	config := Default()
	for _, text := range texts {
		if err := decode(text, config); err != nil {
			return nil, fmt.Errorf("preset %s: %w", name, err)
		}
	}
	config.Preset = name
	return config, nil
}

// PresetText is what a preset changes in Default: one TOML text after the other. Errors are Preset's.
func PresetText(name string) (string, error) {
	texts, err := overlays(name)
	return string(bytes.Join(texts, []byte("\n"))), err
}

// overlays are the texts of a preset.
func overlays(name string) ([][]byte, error) {
	files, known := presets[name]
	if !known {
		return nil, fmt.Errorf("preset: %q is none of %s: %w", name, strings.Join(Presets(), ", "), errdefs.ErrInvalidArgument)
	}
	var texts [][]byte
	for _, file := range files {
		text, err := presetFiles.ReadFile("presets/" + file + ".toml")
		if err != nil {
			return nil, fmt.Errorf("preset %s: %w", name, err)
		}
		texts = append(texts, text)
	}
	return texts, nil
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
