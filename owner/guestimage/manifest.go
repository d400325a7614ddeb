package guestimage

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
)

// Names of the files of an image.
const (
	VmlinuxName  = "vmlinux"
	VmlinuzName  = "vmlinuz"
	InitrdName   = "initrd.cpio"
	ManifestName = "manifest.json"
)

// version is the builder's: raise it with every change that alters the bytes it makes.
const version = 5

// maxManifest bounds manifest.json, in bytes.
const maxManifest = 1 << 20

// Manifest describes an image: what it was made of and what it consists of. It holds nothing that differs between two
// builds of the same inputs.
type Manifest struct {
	// Builder is the version of the program that made the image.
	Builder int `json:"builder"`
	// Kernel is the kernel's release, as uname -r prints it.
	Kernel string `json:"kernel"`
	// Inputs are the SHA-256 digests, in hexadecimal, of kernel, runc, agent and unpacker.
	Inputs map[string]string `json:"inputs"`
	// Files are the image's files, in order of name.
	Files []Part `json:"files"`
	// Initrd says what the initramfs is made of.
	Initrd []Part `json:"initrd"`
}

// Part is one file, or one share of the initramfs.
type Part struct {
	Name string `json:"name"`
	// Size is in bytes.
	Size int64 `json:"size"`
	// SHA256 is in hexadecimal.
	SHA256 string `json:"sha256"`
}

// Inspect reads the manifest of the image in a directory and compares every file with it. A file that is missing or
// differs is an errdefs.ErrDataLoss naming it.
func Inspect(ctx context.Context, imageDir string) (*Manifest, error) {
	m, err := readManifest(imageDir)
	if err != nil {
		return nil, err
	}
	for _, want := range m.Files {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if want.Name != filepath.Base(want.Name) {
			return nil, fmt.Errorf("guest image %s: manifest names %q: %w", imageDir, want.Name, errdefs.ErrDataLoss)
		}
		got, err := measure(filepath.Join(imageDir, want.Name))
		if err != nil {
			return nil, fmt.Errorf("guest image %s: %w: %w", imageDir, err, errdefs.ErrDataLoss)
		}
		if got != want {
			return nil, fmt.Errorf("guest image %s: %s is not the file that was built (sha256 %s instead of %s): build the image again: %w",
				imageDir, want.Name, got.SHA256, want.SHA256, errdefs.ErrDataLoss)
		}
	}
	return m, nil
}

func readManifest(imageDir string) (*Manifest, error) {
	f, err := os.Open(filepath.Join(imageDir, ManifestName))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("no guest image in %s: %w", imageDir, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("open guest image: %w", err)
	}
	defer f.Close()
	data, err := readAll(f, maxManifest)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", f.Name(), err)
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	m := &Manifest{}
	if err := decoder.Decode(m); err != nil {
		return nil, fmt.Errorf("read %s: %w: %w", f.Name(), err, errdefs.ErrDataLoss)
	}
	return m, nil
}

// measure hashes a file without holding it in memory.
func measure(name string) (Part, error) {
	f, err := os.Open(name)
	if err != nil {
		return Part{}, err
	}
	defer f.Close()
	h := sha256.New()
	size, err := io.Copy(h, f)
	if err != nil {
		return Part{}, fmt.Errorf("read %s: %w", name, err)
	}
	return Part{Name: filepath.Base(name), Size: size, SHA256: hex.EncodeToString(h.Sum(nil))}, nil
}

func part(name string, data []byte) Part {
	return Part{Name: name, Size: int64(len(data)), SHA256: digest(data)}
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
