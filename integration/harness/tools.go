package harness

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"github.com/coffer-project/coffer/integration/cache"
)

// Tools are the programs and images a node is made of, as absolute paths.
type Tools struct {
	Containerd, Registry, Runc string // built by make setup
	CtrTool                    string
	CacheBin                   string // their directory, put on PATH so that containerd finds its shims
	Snapshotter, Shim, Broker  string // built by make build
	Ctl                        string
	BuildBin                   string
	Kernel, Initrd             string // built by make guest
	QEMU                       string
	CNIPlugins                 string // directory
	Busybox                    string
}

// FindTools looks for everything that a node needs. The error names each missing thing with its cure.
func FindTools() (Tools, error) {
	tools, err := cache.Dir()
	if err != nil {
		return Tools{}, err
	}
	root, err := Repository()
	if err != nil {
		return Tools{}, err
	}
	bin := filepath.Join(tools, "bin")
	build := envOr("COFFER_BIN", filepath.Join(root, "bin"))
	guest := envOr("COFFER_GUEST", filepath.Join(tools, "guest"))

	t := Tools{
		CacheBin:    bin,
		Containerd:  filepath.Join(bin, "containerd"),
		CtrTool:     filepath.Join(bin, "ctr"),
		Registry:    filepath.Join(bin, "registry"),
		Runc:        filepath.Join(bin, "runc"),
		BuildBin:    build,
		Snapshotter: filepath.Join(build, "coffer-snapshotter"),
		Shim:        filepath.Join(build, "containerd-shim-coffer-v2"),
		Broker:      filepath.Join(build, "coffer-kbs"),
		Ctl:         filepath.Join(build, "cofferctl"),
		Kernel:      filepath.Join(guest, "vmlinux"),
		Initrd:      filepath.Join(guest, "initrd.cpio"),
		CNIPlugins:  "/usr/lib/cni",
		Busybox:     "/bin/busybox",
	}
	var missing []error
	need := func(path, cure string) {
		if _, err := os.Stat(path); err != nil {
			missing = append(missing, fmt.Errorf("%s is missing: run %s", path, cure))
		}
	}
	for _, path := range []string{t.Containerd, t.CtrTool, t.Registry, t.Runc, filepath.Join(t.CNIPlugins, "bridge"), t.Busybox} {
		need(path, "make setup")
	}
	for _, path := range []string{t.Snapshotter, t.Shim, t.Broker, t.Ctl} {
		need(path, "make build")
	}
	for _, path := range []string{t.Kernel, t.Initrd} {
		need(path, "make guest")
	}
	if t.QEMU, err = exec.LookPath("qemu-system-x86_64"); err != nil {
		missing = append(missing, errors.New("qemu-system-x86_64 is not on PATH: run make setup"))
	}
	return t, errors.Join(missing...)
}

// Repository is the folder of the sources. It is found from this file's own place: tests run in their package's folder, the demo anywhere.
func Repository() (string, error) {
	_, file, _, ok := runtime.Caller(0)
	if !ok {
		return "", errors.New("find the repository: no caller information")
	}
	return filepath.Dir(filepath.Dir(filepath.Dir(file))), nil
}

func envOr(name, fallback string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return fallback
}
