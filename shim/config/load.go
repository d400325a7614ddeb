package config

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"
)

// maxFileBytes bounds every file that is read: configuration and initdata alike.
const maxFileBytes = 1 << 20

// Load reads the file at path and its drop-ins over their preset, reads the files that they name and validates the result. It
// fails with errdefs.ErrInvalidArgument, naming the file and the line, or all of Validate's faults.
//
// An empty path means DefaultPath, which may be missing; a path that was given must exist.
func Load(path string) (*Config, error) {
	optional := path == ""
	if optional {
		path = DefaultPath
	}
	files, err := dropIns(path)
	if err != nil {
		return nil, err
	}
	files = append([]string{path}, files...)
	texts := make([][]byte, len(files))
	for i, file := range files {
		texts[i], err = readBounded(file)
		if err != nil && !(i == 0 && optional && errors.Is(err, os.ErrNotExist)) {
			return nil, fmt.Errorf("read configuration: %w", err)
		}
	}
	config, err := Preset(namedPreset(texts))
	if err != nil {
		return nil, fmt.Errorf("configuration %s: %w", path, err)
	}
	for i, file := range files {
		if err := decode(texts[i], config); err != nil {
			return nil, fmt.Errorf("configuration %s: %w", file, err)
		}
	}
	if err := config.Validate(); err != nil {
		return nil, fmt.Errorf("configuration %s: %w", path, err)
	}
	if file := config.Initdata.File; file != "" {
		if config.Initdata.document, err = readBounded(file); err != nil {
			return nil, fmt.Errorf("read initdata.file: %w", err)
		}
	}
	if err := config.SNP.readID(); err != nil {
		return nil, fmt.Errorf("configuration %s: %w", path, err)
	}
	return config, nil
}

// dropIns lists the *.toml files of <path>.d in lexical order; no directory, no drop-ins.
func dropIns(path string) ([]string, error) {
	entries, err := os.ReadDir(path + ".d")
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list configuration drop-ins: %w", err)
	}
	var files []string
	for _, entry := range entries {
		if !entry.IsDir() && strings.HasSuffix(entry.Name(), ".toml") {
			files = append(files, filepath.Join(path+".d", entry.Name()))
		}
	}
	slices.Sort(files)
	return files, nil
}

// decode decodes TOML text over config; keys that the text does not name keep their values.
func decode(raw []byte, into *Config) error {
	decoder := toml.NewDecoder(strings.NewReader(string(raw))).DisallowUnknownFields()
	err := decoder.Decode(into)
	if unknown, ok := errors.AsType[*toml.StrictMissingError](err); ok {
		faults := make([]error, 0, len(unknown.Errors))
		for _, e := range unknown.Errors {
			row, _ := e.Position()
			faults = append(faults, fmt.Errorf("line %d: unknown key %s", row, strings.Join(e.Key(), ".")))
		}
		return fmt.Errorf("%w: %w", errdefs.ErrInvalidArgument, errors.Join(faults...))
	}
	if syntax, ok := errors.AsType[*toml.DecodeError](err); ok {
		row, column := syntax.Position()
		return fmt.Errorf("%w: line %d column %d: %s", errdefs.ErrInvalidArgument, row, column,
			strings.TrimPrefix(syntax.Error(), "toml: "))
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errdefs.ErrInvalidArgument, err)
	}
	return nil
}

func readBounded(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	raw, err := io.ReadAll(io.LimitReader(file, maxFileBytes+1))
	if err != nil {
		return nil, err
	}
	if len(raw) > maxFileBytes {
		return nil, fmt.Errorf("%w: %s is larger than %d bytes", errdefs.ErrInvalidArgument, path, maxFileBytes)
	}
	return raw, nil
}
