package config

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"
)

// Parse decodes a file over the defaults and validates the outcome. Text that is not TOML ends it at once; unknown
// keys, values of a wrong type and values that make no sense are all reported together, as errdefs.ErrInvalidArgument.
func Parse(text []byte) (Config, error) {
	var tree map[string]any
	if err := toml.Unmarshal(text, &tree); err != nil {
		if where, ok := errors.AsType[*toml.DecodeError](err); ok {
			row, column := where.Position()
			err = fmt.Errorf("line %d, column %d: %w", row, column, err)
		}
		return Config{}, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	c := Default()
	faults := decode(&c, tree, nil)
	return c, errors.Join(append(faults, c.Validate())...)
}

// decode lays one value after the other over c, so that a fault in one hides none in the others. path leads to tree.
func decode(c *Config, tree map[string]any, path []string) (faults []error) {
	for _, key := range slices.Sorted(maps.Keys(tree)) {
		here := append(slices.Clone(path), key)
		if table, ok := tree[key].(map[string]any); ok && len(table) > 0 {
			faults = append(faults, decode(c, table, here)...)
			continue
		}
		if err := decodeOne(c, tree[key], here); err != nil {
			faults = append(faults, err)
		}
	}
	return faults
}

func decodeOne(c *Config, value any, path []string) error {
	name := strings.Join(path, ".")
	document := value
	for _, key := range slices.Backward(path) {
		document = map[string]any{key: document}
	}
	text, err := toml.Marshal(document)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	err = toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields().Decode(c)
	var unknown *toml.StrictMissingError
	switch {
	case errors.As(err, &unknown):
		return fmt.Errorf("%s: no such key: %w", name, errdefs.ErrInvalidArgument)
	case err != nil:
		return fmt.Errorf("%s: value %v is of the wrong type: %w", name, value, errdefs.ErrInvalidArgument)
	}
	return nil
}
