package extension

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"
)

// manifestName is where an extension says what it holds.
const manifestName = "etc/kata-extensions/components.toml"

// schemaVersion is the one version of that file.
const schemaVersion = 1

// maxManifest bounds the file, in bytes.
const maxManifest = 64 << 10

// Extension is a mounted extension.
type Extension struct {
	// Name is that of the folder that it is mounted at, Dir the whole path.
	Name, Dir string

	paths map[string]string
}

// Open reads the manifest of the extension that is mounted at dir. One without a manifest names no components. A manifest that
// cannot be read is errdefs.ErrFailedPrecondition.
func Open(dir string) (*Extension, error) {
	e := &Extension{Name: filepath.Base(dir), Dir: dir}
	f, err := os.Open(filepath.Join(dir, manifestName))
	if errors.Is(err, fs.ErrNotExist) {
		return e, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w: %w", manifestName, err, errdefs.ErrFailedPrecondition)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxManifest+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w: %w", manifestName, err, errdefs.ErrFailedPrecondition)
	}
	if e.paths, err = parseManifest(data); err != nil {
		return nil, fmt.Errorf("%s: %w", manifestName, err)
	}
	return e, nil
}

// parseManifest returns the table of paths. What else a manifest has is for Kata's agent, which starts programs by it.
func parseManifest(data []byte) (map[string]string, error) {
	if len(data) > maxManifest {
		return nil, fmt.Errorf("it has more than %d bytes: %w", maxManifest, errdefs.ErrFailedPrecondition)
	}
	var manifest struct {
		SchemaVersion int64             `toml:"schema_version"`
		Paths         map[string]string `toml:"paths"`
	}
	if err := toml.Unmarshal(data, &manifest); err != nil {
		return nil, fmt.Errorf("%.200s: %w", err.Error(), errdefs.ErrFailedPrecondition)
	}
	if manifest.SchemaVersion != schemaVersion {
		return nil, fmt.Errorf("schema_version is %d, and this guest knows %d: %w", manifest.SchemaVersion, schemaVersion, errdefs.ErrFailedPrecondition)
	}
	for component, path := range manifest.Paths {
		if !filepath.IsLocal(strings.TrimLeft(path, "/")) {
			return nil, fmt.Errorf("path %.100q of component %.64q leaves the extension: %w", path, component, errdefs.ErrFailedPrecondition)
		}
	}
	return manifest.Paths, nil
}

// Path is where the extension has a component: what its manifest says, else the usual place within it.
func (e *Extension) Path(component, usual string) string {
	if path, named := e.paths[component]; named {
		usual = path
	}
	return filepath.Join(e.Dir, usual)
}
