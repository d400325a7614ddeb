package config

import (
	"path/filepath"
	"regexp"
	"strings"
)

// Extension is an extension image: a disk that guests check block by block, for programs that the guest image is too small for. The names
// are Kata's.
type Extension struct {
	// Name is part of the disk's serial and of the guest's mount point.
	Name string `toml:"name"`
	// Path is the image's file. Guests share it and only read it.
	Path string `toml:"path"`
	// VerityParams is what the guest checks it by, as cofferctl guest extension prints it after the equals sign.
	VerityParams string `toml:"verity_params"`
}

// Serial is what the disk is called.
func (e Extension) Serial() string { return "extension-" + e.Name }

// param is the kernel parameter that promises it to the guest.
func (e Extension) param() string {
	return "kata.extension." + e.Name + ".verity_params=" + e.VerityParams
}

// extensionName is what a virtio disk's serial of 20 bytes has room for.
var extensionName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,9}$`)

// maxExtensions bounds them; each takes some 250 bytes of the kernel's 2048.
const maxExtensions = 4

func (c *Config) validateExtensions(fault faultFunc) {
	const key = "hypervisor.guest_extension_images"
	if n := len(c.Hypervisor.Extensions); n > maxExtensions {
		fault(key, "%d are more than %d", n, maxExtensions)
	}
	seen := map[string]bool{}
	for _, e := range c.Hypervisor.Extensions {
		switch {
		case !extensionName.MatchString(e.Name):
			fault(key, "name %q is not 1 to 10 small letters, digits and dashes", e.Name)
		case seen[e.Name]:
			fault(key, "%s is there twice", e.Name)
		case !filepath.IsAbs(e.Path) || filepath.Clean(e.Path) != e.Path || strings.ContainsAny(e.Path, ",\n\x00"):
			fault(key, "path %q of %s is no clean absolute path, or has a comma", e.Path, e.Name)
		case !strings.HasPrefix(e.VerityParams, "root_hash=") || strings.ContainsFunc(e.VerityParams, func(r rune) bool { return r <= ' ' || r > '~' }):
			fault(key, "verity_params of %s are not root_hash=...,salt=... as cofferctl guest extension prints them: guests mount nothing unchecked", e.Name)
		}
		seen[e.Name] = true
	}
}
