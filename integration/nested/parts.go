package main

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"

	"github.com/coffer-project/coffer/integration/harness"
)

// parts are the files of this machine that the test's own machine is made of.
type parts struct {
	tools harness.Tools
	// kernel is a Debian kernel package. Its vmlinuz boots the machine, and the machine gets all of its modules.
	kernel string
	// repository is the folder of the sources, of which the node reads the sample configuration.
	repository string
	// programs are found on PATH and keep their places.
	programs []string
}

// findParts names everything that is missing, with its cure.
func findParts() (*parts, error) {
	tools, err := harness.FindTools()
	faults := []error{err}
	p := &parts{tools: tools}
	kernels, err := filepath.Glob(filepath.Join(filepath.Dir(tools.CacheBin), "kernel", "linux-image-*.deb"))
	if err != nil {
		return nil, err
	}
	if len(kernels) == 0 {
		faults = append(faults, errors.New("no kernel package is in the cache: run make setup"))
	} else {
		p.kernel = slices.Max(kernels)
	}
	if p.repository, err = harness.Repository(); err != nil {
		faults = append(faults, err)
	}
	for _, name := range []string{"ip", "nsenter"} {
		path, err := exec.LookPath(name)
		if err != nil {
			faults = append(faults, fmt.Errorf("%s is not on PATH: apt-get install iproute2 util-linux", name))
		}
		p.programs = append(p.programs, path)
	}
	for _, name := range []string{"mke2fs", "debugfs", "dpkg-deb", "ldd"} {
		if _, err := exec.LookPath(name); err != nil {
			faults = append(faults, fmt.Errorf("%s is not on PATH: apt-get install e2fsprogs dpkg libc-bin", name))
		}
	}
	return p, errors.Join(faults...)
}
