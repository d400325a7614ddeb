package cdi

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"tags.cncf.io/container-device-interface/specs-go"

	"github.com/coffer-project/coffer/proto/lazyregexp"
)

// Rules are what a specification may do to a container. Paths are those of the guest; one that ends with a slash
// stands for all in that folder, and one that ends with a star for all that starts so.
type Rules struct {
	// Hooks are the programs that may run when a container is made, outside of it: those of the measured extension.
	Hooks []string
	// Sources are where mounts may come from, Nodes where device nodes may be.
	Sources, Nodes []string
}

// ForDriver returns the rules for NVIDIA's tools with the driver in dir, an extension's folder or "/".
func ForDriver(dir string) Rules {
	nodes := []string{"/dev/nvidia*", "/dev/dri/", "/dev/gdrdrv", "/dev/infiniband/"}
	sockets := []string{"/run/nvidia-persistenced/", "/run/nvidia-fabricmanager/", "/var/run/nvidia-persistenced/", "/var/run/nvidia-fabricmanager/"}
	r := Rules{Nodes: nodes, Sources: append(slices.Clone(nodes), sockets...)}
	if dir == "/" {
		r.Hooks = []string{"/usr/bin/nvidia-cdi-hook", "/usr/bin/nvidia-ctk", "/bin/nvidia-cdi-hook", "/bin/nvidia-ctk"}
		r.Sources = append(r.Sources, "/usr/", "/lib/", "/lib64/", "/etc/nvidia/", "/etc/vulkan/", "/etc/OpenCL/")
		return r
	}
	r.Hooks = []string{path.Join(dir, "bin") + "/", path.Join(dir, "usr/bin") + "/"}
	r.Sources = append(r.Sources, dir+"/")
	return r
}

// hookName is the one moment at which NVIDIA's hooks run.
const hookName = "createContainer"

// variable is what specifications may set; nothing that a loader or a shell obeys has such a name.
var variable = lazyregexp.New(`^NVIDIA_[A-Z0-9_]{1,64}=`)

// Limits of the edits for one device, far above what is needed.
const (
	maxEdits = 1024
	maxArgs  = 256
	maxText  = 4096 // bytes
)

// check judges edits.
func (r Rules) check(e *specs.ContainerEdits) error {
	switch {
	case len(e.Env)+len(e.DeviceNodes)+len(e.Hooks)+len(e.Mounts) > maxEdits:
		return fmt.Errorf("it makes more than %d edits", maxEdits)
	case len(e.NetDevices) > 0 || e.IntelRdt != nil || len(e.AdditionalGIDs) > 0:
		return fmt.Errorf("it changes network devices, caches or groups")
	}
	for _, env := range e.Env {
		if !variable.MatchString(env) || len(env) > maxText || strings.ContainsRune(env, 0) {
			return fmt.Errorf("it sets variable %.64q", env)
		}
	}
	for _, n := range e.DeviceNodes {
		at := n.HostPath
		if at == "" {
			at = n.Path
		}
		if !allowed(r.Nodes, at) || !allowed(r.Nodes, n.Path) || (n.Type != "" && n.Type != "c") {
			return fmt.Errorf("it gives away device %.100q as %.100q", at, n.Path)
		}
	}
	for _, m := range e.Mounts {
		if err := r.checkMount(m); err != nil {
			return err
		}
	}
	for _, h := range e.Hooks {
		if err := r.checkHook(h); err != nil {
			return err
		}
	}
	return nil
}

// mountOptions are those that give a container no more than it sees.
var mountOptions = map[string]bool{"ro": true, "nosuid": true, "nodev": true, "noexec": true, "bind": true, "rbind": true, "private": true, "rprivate": true}

// shadowed are the places that a mount must leave alone.
var shadowed = []string{"/proc", "/sys", "/dev"}

func (r Rules) checkMount(m *specs.Mount) error {
	if !allowed(r.Sources, m.HostPath) || !clean(m.ContainerPath) || m.ContainerPath == "/" || (m.Type != "" && m.Type != "bind") {
		return fmt.Errorf("it mounts %.100q at %.100q", m.HostPath, m.ContainerPath)
	}
	for _, p := range shadowed {
		if m.ContainerPath == p {
			return fmt.Errorf("it mounts over %s", p)
		}
	}
	for _, option := range m.Options {
		if !mountOptions[option] {
			return fmt.Errorf("it mounts %.100q with option %.32q", m.HostPath, option)
		}
	}
	return nil
}

func (r Rules) checkHook(h *specs.Hook) error {
	if h.HookName != hookName || !allowed(r.Hooks, h.Path) {
		return fmt.Errorf("it runs %.100q at %.32q, and only %q are allowed at %s", h.Path, h.HookName, r.Hooks, hookName)
	}
	if len(h.Args) > maxArgs {
		return fmt.Errorf("it runs %s with %d arguments", h.Path, len(h.Args))
	}
	for _, env := range h.Env {
		if !variable.MatchString(env) || len(env) > maxText {
			return fmt.Errorf("it runs %s with variable %.64q", h.Path, env)
		}
	}
	return nil
}

// allowed tells whether a path is on the list: a folder takes what is in it, a name that ends with a star what starts with it, and
// anything else itself.
func allowed(list []string, p string) bool {
	return clean(p) && slices.ContainsFunc(list, func(entry string) bool {
		start, open := strings.CutSuffix(entry, "*")
		return p == entry || (open || strings.HasSuffix(entry, "/")) && strings.HasPrefix(p, start)
	})
}

func clean(p string) bool {
	return path.IsAbs(p) && path.Clean(p) == p && len(p) <= maxText && !strings.ContainsRune(p, 0)
}
