package harness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// CRI is a small client of the node's container runtime interface: what kubelet does, one step a method.
type CRI struct {
	Runtime runtime.RuntimeServiceClient
	Images  runtime.ImageServiceClient

	conn *grpc.ClientConn
	logs string
}

// Pod is a running pod.
type Pod struct {
	ID, IP  string
	Handler string
	Config  *runtime.PodSandboxConfig

	cri *CRI
}

func dialCRI(socket, logs string) (*CRI, error) {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("dial CRI at %s: %w", socket, err)
	}
	return &CRI{
		Runtime: runtime.NewRuntimeServiceClient(conn), Images: runtime.NewImageServiceClient(conn), conn: conn, logs: logs,
	}, nil
}

// Close drops the connection.
func (c *CRI) Close() error { return c.conn.Close() }

// PodConfig is a pod of the given name with its own log folder.
func (c *CRI) PodConfig(name string, annotations map[string]string) *runtime.PodSandboxConfig {
	return &runtime.PodSandboxConfig{
		Metadata:     &runtime.PodSandboxMetadata{Name: name, Namespace: "default", Uid: name + "-" + randomHex(4)},
		Hostname:     name,
		LogDirectory: filepath.Join(c.logs, name),
		DnsConfig:    &runtime.DNSConfig{Servers: []string{NodeIP}, Searches: []string{"coffer.test"}},
		Annotations:  annotations,
		Linux:        &runtime.LinuxPodSandboxConfig{SecurityContext: &runtime.LinuxSandboxSecurityContext{}},
	}
}

// RunPod starts a pod under handler; the empty handler is runc.
func (c *CRI) RunPod(ctx context.Context, handler string, config *runtime.PodSandboxConfig) (*Pod, error) {
	if err := os.MkdirAll(config.LogDirectory, 0o700); err != nil {
		return nil, err
	}
	resp, err := c.Runtime.RunPodSandbox(ctx, &runtime.RunPodSandboxRequest{Config: config, RuntimeHandler: handler})
	if err != nil {
		return nil, fmt.Errorf("run pod %s: %w", config.Metadata.Name, err)
	}
	p := &Pod{ID: resp.PodSandboxId, Handler: handler, Config: config, cri: c}
	status, err := c.Runtime.PodSandboxStatus(ctx, &runtime.PodSandboxStatusRequest{PodSandboxId: p.ID})
	if err != nil {
		return p, fmt.Errorf("status of pod %s: %w", config.Metadata.Name, err)
	}
	p.IP = status.Status.GetNetwork().GetIp()
	return p, nil
}

// Info is the runtime's own account of the pod: the verbose part of its status.
func (p *Pod) Info(ctx context.Context) (map[string]string, error) {
	status, err := p.cri.Runtime.PodSandboxStatus(ctx, &runtime.PodSandboxStatusRequest{PodSandboxId: p.ID, Verbose: true})
	return status.GetInfo(), err
}

// Pull pulls image for this pod's handler, as kubelet does with its gate RuntimeClassInImageCriApi on.
func (p *Pod) Pull(ctx context.Context, image string) error {
	spec := &runtime.ImageSpec{Image: image, RuntimeHandler: p.Handler}
	_, err := p.cri.Images.PullImage(ctx, &runtime.PullImageRequest{Image: spec, SandboxConfig: p.Config})
	if err != nil {
		return fmt.Errorf("pull %s: %w", image, err)
	}
	return nil
}

// Container is a container of a pod.
type Container struct {
	ID      string
	LogPath string

	pod *Pod
}

// Create creates a container that runs command from image, which must have been pulled.
func (p *Pod) Create(ctx context.Context, name, image string, command ...string) (*Container, error) {
	return p.CreateFrom(ctx, &runtime.ContainerConfig{
		Metadata: &runtime.ContainerMetadata{Name: name},
		Image:    &runtime.ImageSpec{Image: image, UserSpecifiedImage: image, RuntimeHandler: p.Handler},
		Command:  command, LogPath: name + ".log",
		Linux: &runtime.LinuxContainerConfig{SecurityContext: &runtime.LinuxContainerSecurityContext{
			NamespaceOptions: &runtime.NamespaceOption{Pid: runtime.NamespaceMode_CONTAINER},
		}},
	})
}

// CreateFrom creates a container from a complete configuration.
func (p *Pod) CreateFrom(ctx context.Context, config *runtime.ContainerConfig) (*Container, error) {
	resp, err := p.cri.Runtime.CreateContainer(ctx, &runtime.CreateContainerRequest{
		PodSandboxId: p.ID, Config: config, SandboxConfig: p.Config,
	})
	if err != nil {
		return nil, fmt.Errorf("create container %s: %w", config.Metadata.Name, err)
	}
	return &Container{ID: resp.ContainerId, LogPath: filepath.Join(p.Config.LogDirectory, config.LogPath), pod: p}, nil
}

// Start starts the container.
func (c *Container) Start(ctx context.Context) error {
	_, err := c.pod.cri.Runtime.StartContainer(ctx, &runtime.StartContainerRequest{ContainerId: c.ID})
	if err != nil {
		return fmt.Errorf("start container %s: %w", c.ID, err)
	}
	return nil
}

// Status returns what CRI reports of the container.
func (c *Container) Status(ctx context.Context) (*runtime.ContainerStatus, error) {
	resp, err := c.pod.cri.Runtime.ContainerStatus(ctx, &runtime.ContainerStatusRequest{ContainerId: c.ID})
	if err != nil {
		return nil, fmt.Errorf("status of container %s: %w", c.ID, err)
	}
	return resp.Status, nil
}

// Wait returns the container's status once it has exited.
func (c *Container) Wait(ctx context.Context) (*runtime.ContainerStatus, error) {
	var last *runtime.ContainerStatus
	err := Eventually(ctx, func(ctx context.Context) error {
		status, err := c.Status(ctx)
		if err != nil {
			return err
		}
		if last = status; last.State != runtime.ContainerState_CONTAINER_EXITED {
			return fmt.Errorf("container %s is %s", c.ID, last.State)
		}
		return nil
	})
	return last, err
}

// Run starts the container, waits for its end and returns what it wrote.
func (c *Container) Run(ctx context.Context) (string, error) {
	if err := c.Start(ctx); err != nil {
		return "", err
	}
	if _, err := c.Wait(ctx); err != nil {
		return "", err
	}
	return c.Output()
}

// Output is what the container wrote to stdout and stderr, without the log's time stamps.
func (c *Container) Output() (string, error) {
	var out strings.Builder
	err := c.eachLogEntry(func(_, text string) { out.WriteString(text) })
	return out.String(), err
}

// Streams is what the container wrote, by stream.
func (c *Container) Streams() (stdout, stderr string, err error) {
	streams := map[string]*strings.Builder{"stdout": {}, "stderr": {}}
	err = c.eachLogEntry(func(stream, text string) { streams[stream].WriteString(text) })
	return streams["stdout"].String(), streams["stderr"].String(), err
}

func (c *Container) eachLogEntry(take func(stream, text string)) error {
	content, err := os.ReadFile(c.LogPath)
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(content)) {
		// A CRI log line: time, stream, F (full) or P (partial), text.
		fields := strings.SplitN(line, " ", 4)
		if len(fields) != 4 || (fields[1] != "stdout" && fields[1] != "stderr") {
			return fmt.Errorf("read log %s: not a CRI log line: %q", c.LogPath, line)
		}
		text := fields[3]
		if fields[2] == "P" {
			text = strings.TrimSuffix(text, "\n")
		}
		take(fields[1], text)
	}
	return nil
}

// ExecSync runs a command in the container and returns its output.
func (c *Container) ExecSync(ctx context.Context, command ...string) (*runtime.ExecSyncResponse, error) {
	deadline, ok := ctx.Deadline()
	timeout := int64(60)
	if ok {
		timeout = max(1, int64(time.Until(deadline).Seconds()))
	}
	return c.pod.cri.Runtime.ExecSync(ctx, &runtime.ExecSyncRequest{ContainerId: c.ID, Cmd: command, Timeout: timeout})
}

// Stop stops the container, by force after timeout seconds.
func (c *Container) Stop(ctx context.Context, timeout int64) error {
	_, err := c.pod.cri.Runtime.StopContainer(ctx, &runtime.StopContainerRequest{ContainerId: c.ID, Timeout: timeout})
	return err
}

// Remove stops and removes the pod with all its containers.
func (p *Pod) Remove(ctx context.Context) error {
	_, err := p.cri.Runtime.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: p.ID})
	if err != nil {
		return fmt.Errorf("stop pod %s: %w", p.ID, err)
	}
	if _, err = p.cri.Runtime.RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: p.ID}); err != nil {
		return fmt.Errorf("remove pod %s: %w", p.ID, err)
	}
	return nil
}

// RemoveAll removes every pod of the node.
func (c *CRI) RemoveAll(ctx context.Context) error {
	list, err := c.Runtime.ListPodSandbox(ctx, &runtime.ListPodSandboxRequest{})
	if err != nil {
		return fmt.Errorf("list pods: %w", err)
	}
	var faults []error
	for _, item := range list.Items {
		faults = append(faults, (&Pod{ID: item.Id, cri: c}).Remove(ctx))
	}
	return errors.Join(faults...)
}
