package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// writeDropIns copies the files for containerd that an admin installs, so that tests run with just what they say. Only
// the paths in them become the node's own.
func (n *Node) writeDropIns() (paths []string, err error) {
	root, err := Repository()
	if err != nil {
		return nil, err
	}
	names := []string{"coffer.toml", "coffer-podsandbox.toml"}
	if n.defaultInstalled {
		names = append(names, "coffer-node-default.toml")
	}
	replace := strings.NewReplacer(
		"/run/coffer-snapshotter/snapshotter.sock", n.path("snapshotter.sock"),
		"/run/coffer-snapshotter/default.sock", n.path("default.sock"),
		"/var/lib/coffer-snapshotter/default", n.path("snapshotter-default"),
		"/var/lib/coffer-snapshotter", n.path("snapshotter"),
		"/etc/coffer/shim.toml", n.path("shim.toml"),
	)
	dir := n.path("conf.d")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	for _, name := range names {
		raw, err := os.ReadFile(filepath.Join(root, "contrib", "containerd", name))
		if err != nil {
			return nil, fmt.Errorf("read sample configuration: %w", err)
		}
		text := replace.Replace(string(raw))
		if name == "coffer-node-default.toml" && !n.options.NodeDefault {
			// What the file says an admin takes out to go back.
			text, _, _ = strings.Cut(text, "# 2. ")
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return nil, err
		}
		paths = append(paths, path)
	}
	return paths, nil
}

// SetNodeDefault makes our second snapshotter containerd's default, or overlayfs again. It holds from the next start of
// the snapshotter and of containerd on.
func (n *Node) SetNodeDefault(on bool) {
	n.options.NodeDefault = on
	n.defaultInstalled = n.defaultInstalled || on
}
