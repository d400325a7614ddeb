package config

import (
	_ "embed"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/platforms"

	"github.com/coffer-project/coffer/snapshotter"
	"github.com/coffer-project/coffer/snapshotter/images"
)

const (
	// DefaultPath is where the program looks when it is given no path. It need not exist.
	DefaultPath = "/etc/coffer/snapshotter.toml"
	version     = 1
	// maxSocketPath is what the kernel's sockaddr_un holds, in bytes, without the closing zero.
	maxSocketPath = 107
	// maxFile bounds a configuration file in bytes.
	maxFile = 1 << 20
)

var levels = []string{"trace", "debug", "info", "warn", "error"}

//go:embed default.toml
var defaultText string

// Config is the whole file. default.toml explains the keys.
type Config struct {
	Version int    `toml:"version"`
	Root    string `toml:"root"`
	Address string `toml:"address"`
	// ContainerdAddress is where containerd itself listens.
	ContainerdAddress string      `toml:"containerd_address"`
	Platform          string      `toml:"platform"`
	Images            Images      `toml:"images"`
	NodeDefault       NodeDefault `toml:"node_default"`
	Overlay           Overlay     `toml:"overlay"`
	Log               Log         `toml:"log"`
}

// Images says who unpacks what.
type Images struct {
	Passthrough      []string `toml:"passthrough"`
	UnpackPause      bool     `toml:"unpack_pause"`
	WithoutReference string   `toml:"without_reference"`
	NamedUsers       bool     `toml:"named_users"`
}

// Overlay is about the images that this host unpacks.
type Overlay struct {
	MountOptions []string `toml:"mount_options"`
}

// Log is about the program's own log, which goes to standard error.
type Log struct {
	Level  string `toml:"level"`
	Format string `toml:"format"`
}

// Default returns the complete defaults.
func Default() Config {
	return Config{
		Version:           version,
		Root:              "/var/lib/coffer-snapshotter",
		Address:           "/run/coffer-snapshotter/snapshotter.sock",
		ContainerdAddress: images.DefaultAddress,
		Images: Images{
			Passthrough:      []string{},
			UnpackPause:      true,
			WithoutReference: string(snapshotter.ModeReference),
			NamedUsers:       true,
		},
		NodeDefault: NodeDefault{Root: "/var/lib/coffer-snapshotter/default", Guest: []string{}},
		Overlay:     Overlay{MountOptions: []string{}},
		Log:         Log{Level: "info", Format: string(log.TextFormat)},
	}
}

// Sockets are those of the snapshotters that the program serves, by the names that they have in contrib/containerd.
func (c Config) Sockets() map[string]string {
	sockets := map[string]string{"coffer": c.Address}
	if c.NodeDefault.Address != "" {
		sockets["coffer-default"] = c.NodeDefault.Address
	}
	return sockets
}

// DefaultText returns the defaults as a commented file.
func DefaultText() string { return defaultText }

// Load reads and validates a file. An empty path means DefaultPath, which may be missing; a path that was asked for
// must be there.
func Load(path string) (Config, error) {
	asked := path != ""
	if !asked {
		path = DefaultPath
	}
	info, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) && !asked {
		return Default(), nil
	}
	if err != nil {
		return Config{}, fmt.Errorf("read configuration: %w", err)
	}
	if info.Size() > maxFile {
		return Config{}, fmt.Errorf("configuration %s has %d bytes, more than %d: %w", path, info.Size(), maxFile, errdefs.ErrInvalidArgument)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return Config{}, fmt.Errorf("read configuration: %w", err)
	}
	c, err := Parse(raw)
	if err != nil {
		return Config{}, fmt.Errorf("configuration %s: %w", path, err)
	}
	return c, nil
}

// Validate reports every fault at once. Failures are errdefs.ErrInvalidArgument.
func (c Config) Validate() error {
	var faults []error
	fault := func(key, format string, args ...any) {
		faults = append(faults, fmt.Errorf(key+": "+format+": %w", append(args, errdefs.ErrInvalidArgument)...))
	}
	if c.Version != version {
		fault("version", "%d is not known, this program knows %d", c.Version, version)
	}
	checkRoot("root", c.Root, fault)
	checkSocket("address", c.Address, fault)
	checkSocket("containerd_address", c.ContainerdAddress, fault)
	c.NodeDefault.validate(c, fault)
	if c.Platform != "" {
		if _, err := platforms.Parse(c.Platform); err != nil {
			fault("platform", "%q is not a platform such as linux/amd64: %v", c.Platform, err)
		}
	}
	if _, err := c.Images.Rules(); err != nil {
		faults = append(faults, err)
	}
	for _, o := range c.Overlay.MountOptions {
		if o == "" || strings.Contains(o, ",") || reservedOption(o) {
			fault("overlay.mount_options", "%q is empty, holds a comma, or is one that the snapshotter sets itself", o)
		}
	}
	if !slices.Contains(levels, c.Log.Level) {
		fault("log.level", "%q is none of %s", c.Log.Level, strings.Join(levels, ", "))
	}
	if f := log.OutputFormat(c.Log.Format); f != log.TextFormat && f != log.JSONFormat {
		fault("log.format", "%q is neither %q nor %q", c.Log.Format, log.TextFormat, log.JSONFormat)
	}
	return errors.Join(faults...)
}

type faultFunc func(key, format string, args ...any)

func checkPath(key, path string, fault faultFunc) {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path || path == "/" {
		fault(key, "%q is not a clean absolute path", path)
	}
}

func checkRoot(key, path string, fault faultFunc) {
	checkPath(key, path, fault)
	if strings.ContainsAny(path, ",:\\") {
		fault(key, "%q holds a comma, colon or backslash, which the kernel's overlay mount options cannot", path)
	}
}

func checkSocket(key, path string, fault faultFunc) {
	checkPath(key, path, fault)
	if len(path) > maxSocketPath {
		fault(key, "path of %d bytes is longer than the %d that a unix socket can have", len(path), maxSocketPath)
	}
}

func reservedOption(option string) bool {
	key, _, _ := strings.Cut(option, "=")
	return key == "lowerdir" || key == "upperdir" || key == "workdir"
}

// Rules translates the section for the snapshotter.
func (i Images) Rules() (snapshotter.Rules, error) {
	var mode snapshotter.Mode
	modeErr := mode.UnmarshalText([]byte(i.WithoutReference))
	if modeErr != nil {
		modeErr = fmt.Errorf("images.without_reference: %w", modeErr)
	}
	rules, err := snapshotter.NewRules(i.Passthrough, mode)
	return rules, errors.Join(modeErr, err)
}
