// Command shim stands before the real shim of a test node. It gives containers that have no network one, and then
// runs the real shim.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Settings is what the node tells this program in settings.json beside it.
type Settings struct {
	// Shim is the real shim.
	Shim string
	// Plugin is the CNI plugin that makes networks, Network its configuration.
	Plugin, Network string
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "shim of the client suite:", err)
		os.Exit(1)
	}
}

func run() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	raw, err := os.ReadFile(filepath.Join(filepath.Dir(self), "settings.json"))
	if err != nil {
		return err
	}
	var s Settings
	if err := json.Unmarshal(raw, &s); err != nil {
		return err
	}
	args := append([]string{s.Shim}, os.Args[1:]...)
	bundle, err := os.Getwd()
	if err != nil {
		return err
	}
	switch {
	case slices.Contains(os.Args, "start"):
		return s.start(bundle, args)
	case slices.Contains(os.Args, "delete"):
		if i := slices.Index(os.Args, "-bundle"); i > 0 && i+1 < len(os.Args) {
			bundle = os.Args[i+1]
		}
		return errors.Join(s.forward(args), s.removeNetwork(bundle))
	}
	return syscall.Exec(s.Shim, args, os.Environ()) //nolint:gosec // the program that the node names
}

// start gives the container what it lacks and lets the real shim do the rest.
func (s *Settings) start(bundle string, args []string) error {
	if err := s.addNetwork(bundle); err != nil {
		return errors.Join(err, s.removeNetwork(bundle))
	}
	if err := s.forward(args); err != nil {
		return errors.Join(err, s.removeNetwork(bundle))
	}
	return nil
}

// forward runs the real shim as this process's work. An exit status goes on as it is.
func (s *Settings) forward(args []string) error {
	cmd := exec.Command(s.Shim, args[1:]...) //nolint:gosec // the program that the node names
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd.Run()
}

// namespaceName is made from the bundle, which both start and delete know.
func namespaceName(bundle string) string {
	return "cs-" + filepath.Base(filepath.Dir(filepath.Dir(filepath.Dir(filepath.Dir(bundle))))) + "-" + filepath.Base(bundle)
}

// addNetwork makes a namespace with a network for a container that asks for a new one, and names it in the
// specification.
func (s *Settings) addNetwork(bundle string) error {
	path := filepath.Join(bundle, "config.json")
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	// Whatever is in it stays as it is, but for the one field.
	var spec map[string]json.RawMessage
	var linux map[string]json.RawMessage
	var namespaces []specs.LinuxNamespace
	if err := json.Unmarshal(raw, &spec); err != nil {
		return err
	}
	if err := json.Unmarshal(spec["linux"], &linux); err != nil {
		return err
	}
	if err := json.Unmarshal(linux["namespaces"], &namespaces); err != nil {
		return err
	}
	i := slices.IndexFunc(namespaces, func(ns specs.LinuxNamespace) bool { return ns.Type == specs.NetworkNamespace })
	if i < 0 || namespaces[i].Path != "" {
		return nil
	}
	name := namespaceName(bundle)
	if out, err := exec.Command("ip", "netns", "add", name).CombinedOutput(); err != nil {
		return fmt.Errorf("make network namespace: %w: %s", err, out)
	}
	namespaces[i].Path = "/run/netns/" + name
	if err := s.plugin("ADD", name); err != nil {
		return err
	}
	if linux["namespaces"], err = json.Marshal(namespaces); err != nil {
		return err
	}
	if spec["linux"], err = json.Marshal(linux); err != nil {
		return err
	}
	if raw, err = json.Marshal(spec); err != nil {
		return err
	}
	return os.WriteFile(path, raw, 0o600)
}

func (s *Settings) removeNetwork(bundle string) error {
	name := namespaceName(bundle)
	if _, err := os.Stat("/run/netns/" + name); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	err := s.plugin("DEL", name)
	if out, failed := exec.Command("ip", "netns", "del", name).CombinedOutput(); failed != nil { //nolint:gosec // made of the bundle that containerd names
		err = errors.Join(err, fmt.Errorf("remove network namespace: %w: %s", failed, out))
	}
	return err
}

// plugin calls the CNI plugin for one namespace.
func (s *Settings) plugin(command, name string) error {
	cmd := exec.Command(s.Plugin)
	cmd.Env = append(os.Environ(), "CNI_COMMAND="+command, "CNI_CONTAINERID="+name, "CNI_NETNS=/run/netns/"+name,
		"CNI_IFNAME=eth0", "CNI_PATH="+filepath.Dir(s.Plugin))
	cmd.Stdin = strings.NewReader(s.Network)
	if out, err := cmd.Output(); err != nil {
		return fmt.Errorf("cni %s: %w: %s", command, err, out)
	}
	return nil
}
