package manager

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
)

// Annotations of containerd's CRI plugin that tell which pod a container belongs to.
const (
	annotationSandboxID     = "io.kubernetes.cri.sandbox-id"
	annotationContainerType = "io.kubernetes.cri.container-type"
	containerTypeContainer  = "container"
)

const (
	shimAPIVersion = 3
	shimProtocol   = "ttrpc"
)

// Start starts the shim of a pod in the current directory, which is the bundle, and answers where it listens. For a
// container of a pod that already has a shim it answers that shim's address and starts nothing.
func (m *Manager) Start(ctx context.Context, params *bootapi.BootstrapParams) (*bootapi.BootstrapResult, error) {
	bundle, err := os.Getwd()
	if err != nil {
		return nil, fmt.Errorf("find the bundle: %w", err)
	}
	id := params.GetInstanceID()
	pod, err := podOf(bundle, id)
	if err != nil {
		return nil, err
	}
	socketDir := params.GetSocketDir()
	if socketDir == "" {
		socketDir = filepath.Join(defaults.DefaultStateDir, "s")
	}
	address, err := shim.CreateSocketAddress(ctx, socketDir, params.GetContainerdGrpcAddress(), pod, false)
	if err != nil {
		return nil, fmt.Errorf("name the shim's socket: %w", err)
	}
	result := &bootapi.BootstrapResult{Version: shimAPIVersion, Protocol: shimProtocol, Address: address}
	if pod != id {
		if !shim.CanConnect(address) {
			return nil, fmt.Errorf("container %s belongs to pod sandbox %s, which has no running shim: %w",
				id, pod, errdefs.ErrFailedPrecondition)
		}
		return result, nil
	}
	record := &Record{Address: address}
	if record.ConfigPath, err = m.configPath(params); err != nil {
		return nil, err
	}
	if err := record.Write(bundle); err != nil {
		return nil, err
	}
	if err := spawn(ctx, bundle, params, address); err != nil {
		return nil, fmt.Errorf("start shim of %s: %w", id, err)
	}
	return result, nil
}

// podOf tells which pod the container of a bundle belongs to: its own id unless the annotations name another sandbox.
// Under the shim sandboxer a sandbox's bundle has no config.json at all.
func podOf(bundle, id string) (string, error) {
	var spec struct {
		Annotations map[string]string `json:"annotations"`
	}
	err := readJSON(filepath.Join(bundle, "config.json"), &spec)
	if errdefs.IsNotFound(err) {
		return id, nil
	}
	if err != nil {
		return "", fmt.Errorf("find the pod of %s: %w", id, err)
	}
	pod := spec.Annotations[annotationSandboxID]
	if spec.Annotations[annotationContainerType] != containerTypeContainer || pod == "" {
		return id, nil
	}
	return pod, nil
}

// configPath takes the runtime configuration's path from the runtime options that containerd sends with the bootstrap
// parameters. Settings written straight into containerd's configuration are refused rather than silently dropped.
func (m *Manager) configPath(params *bootapi.BootstrapParams) (string, error) {
	var options runtimeoptions.Options
	found, err := params.FindExtension(&options)
	if err != nil {
		return "", fmt.Errorf("decode runtime options: %w", err)
	}
	path := options.GetConfigPath()
	if !found {
		path = m.config
	}
	if path == "" && len(bytes.TrimSpace(options.GetConfigBody())) > 0 {
		return "", fmt.Errorf("runtime options hold settings but no ConfigPath; put them in a file and name it by ConfigPath: %w",
			errdefs.ErrInvalidArgument)
	}
	if path != "" && !filepath.IsAbs(path) {
		return "", fmt.Errorf("path %q of the runtime configuration is not absolute: %w", path, errdefs.ErrInvalidArgument)
	}
	return path, nil
}

// spawn starts the serving process with its listening sockets inherited, so that containerd can connect before the
// process has initialised.
func spawn(ctx context.Context, bundle string, params *bootapi.BootstrapParams, address string) (retErr error) {
	debug := params.GetLogLevel() <= bootapi.LogLevel_LOG_LEVEL_DEBUG
	cmd, err := serveCommand(ctx, bundle, params, debug)
	if err != nil {
		return err
	}
	sock, err := listen(address)
	if err != nil {
		return err
	}
	defer sock.release(&retErr)
	cmd.ExtraFiles = append(cmd.ExtraFiles, sock.file)
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("run %s: %w", cmd.Path, err)
	}
	if err := shim.AdjustOOMScore(cmd.Process.Pid); err != nil {
		log.G(ctx).WithError(err).Warn("shim keeps its inherited oom score")
	}
	return cmd.Process.Release()
}

func serveCommand(ctx context.Context, bundle string, params *bootapi.BootstrapParams, debug bool) (*exec.Cmd, error) {
	namespace, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find own binary: %w", err)
	}
	args := []string{"-namespace", namespace, "-id", params.GetInstanceID(), "-address", params.GetContainerdGrpcAddress()}
	if debug {
		args = append(args, "-debug")
	}
	// Not CommandContext: the shim outlives this process and whatever cancels it.
	cmd := exec.Command(self, args...)
	cmd.Dir = bundle
	cmd.Env = os.Environ()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd, nil
}
