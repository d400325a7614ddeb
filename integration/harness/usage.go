package harness

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Usage is what a node holds: by kind, a line for each thing, sorted.
type Usage map[string][]string

// Usage takes stock of the node: its processes, mounts, network interfaces and files, and the files that its daemons
// have open. Logs and what the registries and the broker store are not counted.
func (n *Node) Usage() (Usage, error) {
	u := Usage{}
	var faults []error
	for kind, list := range map[string]func() ([]string, error){
		"processes": n.processes, "mounts": n.mounts, "interfaces": n.interfaces, "files": n.files,
		"files open in containerd":      func() ([]string, error) { return openFiles(n.Containerd.PID()) },
		"files open in the snapshotter": func() ([]string, error) { return openFiles(n.Snapshotter.PID()) },
	} {
		found, err := list()
		if err != nil {
			faults = append(faults, fmt.Errorf("list %s: %w", kind, err))
		}
		slices.Sort(found)
		u[kind] = found
	}
	return u, errors.Join(faults...)
}

// Grown tells what there is more of than before.
func (u Usage) Grown(before Usage) error {
	var faults []error
	for kind, now := range u {
		if len(now) <= len(before[kind]) {
			continue
		}
		added := slices.DeleteFunc(slices.Clone(now), func(line string) bool { return slices.Contains(before[kind], line) })
		faults = append(faults, fmt.Errorf("%d %s, %d before; new are %.2000q", len(now), kind, len(before[kind]), added))
	}
	return errors.Join(faults...)
}

// processes are those with the node's folder on their command lines, by their programs: a process id says nothing.
func (n *Node) processes() ([]string, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	var found []string
	for _, path := range dirs {
		raw, err := os.ReadFile(path)
		if err != nil || !bytes.Contains(raw, []byte(n.Dir)) {
			continue // it has ended meanwhile, or is not the node's
		}
		program, _, _ := bytes.Cut(raw, []byte{0})
		found = append(found, filepath.Base(string(program)))
	}
	return found, nil
}

func (n *Node) mounts() ([]string, error) {
	content, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil, err
	}
	var found []string
	for line := range strings.Lines(string(content)) {
		if fields := strings.Fields(line); len(fields) > 1 && strings.HasPrefix(fields[1], n.Dir+"/") {
			found = append(found, fields[1])
		}
	}
	return found, nil
}

func (n *Node) interfaces() (found []string, err error) {
	err = n.ns.do(func() error {
		// /proc/thread-self/net shows the namespace of this very thread.
		content, err := os.ReadFile("/proc/thread-self/net/dev")
		for line := range strings.Lines(string(content)) {
			if name, _, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
				found = append(found, name)
			}
		}
		return err
	})
	return found, err
}

func (n *Node) files() ([]string, error) {
	var found []string
	err := filepath.WalkDir(n.Dir, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil // removed meanwhile
		case err != nil:
			return err
		case entry.IsDir() && (entry.Name() == "logs" || strings.HasPrefix(entry.Name(), "registry-") || entry.Name() == "broker"):
			return fs.SkipDir
		}
		found = append(found, path)
		return nil
	})
	return found, err
}

// openFiles are the files that a process has open, by name.
func openFiles(pid int) ([]string, error) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var found []string
	for _, entry := range entries {
		if name, err := os.Readlink(filepath.Join(dir, entry.Name())); err == nil {
			found = append(found, name)
		}
	}
	return found, nil
}
