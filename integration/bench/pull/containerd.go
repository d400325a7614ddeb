package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// containerd pulls through CRI, as a kubelet asks for it, into overlayfs snapshots, and decrypts by imgcrypt's stream
// processor. Each pull has a daemon of its own.
type containerd struct {
	*place
	decoder string // empty: the built-in one

	binary, socket string
}

// containerdConfig is for key model "node": keys are known to the node, here by ocicrypt's key provider.
const containerdConfig = `version = 3
root = '%[1]s/root'
state = '%[2]s/state'
disabled_plugins = ['io.containerd.nri.v1.nri', 'io.containerd.snapshotter.v1.erofs', 'io.containerd.differ.v1.erofs', 'io.containerd.snapshotter.v1.blockfile']
[grpc]
  address = '%[3]s'
[ttrpc]
  address = '%[3]s.ttrpc'
[plugins.'io.containerd.cri.v1.runtime'.cni]
  conf_dir = '%[2]s/cni'
[plugins.'io.containerd.cri.v1.images']
  snapshotter = 'overlayfs'
  use_local_image_pull = true
  [plugins.'io.containerd.cri.v1.images'.image_decryption]
    key_model = 'node'
[stream_processors.'io.containerd.ocicrypt.decoder.v1.tar']
  accepts = ['application/vnd.oci.image.layer.v1.tar+encrypted']
  returns = 'application/vnd.oci.image.layer.v1.tar'
  path = '%[4]s'
  args = [%[5]s]
  env = ['OCICRYPT_KEYPROVIDER_CONFIG=%[6]s']
[stream_processors.'io.containerd.ocicrypt.decoder.v1.tar.gzip']
  accepts = ['application/vnd.oci.image.layer.v1.tar+gzip+encrypted']
  returns = 'application/vnd.oci.image.layer.v1.tar+gzip'
  path = '%[4]s'
  args = [%[5]s]
  env = ['OCICRYPT_KEYPROVIDER_CONFIG=%[6]s']
`

func (c *containerd) prepare() (string, error) {
	cache, err := cacheFolder("")
	if err != nil {
		return "", err
	}
	c.binary = filepath.Join(filepath.Dir(cache), "bin", "containerd")
	c.socket = filepath.Join(c.scratch, "containerd.sock")
	v, err := versions("run make setup", c.binary)
	if err != nil {
		return "", err
	}
	if c.decoder == "" {
		return v + ", built-in decoder with ocicrypt", nil
	}
	_, err = os.Stat(c.decoder)
	return v + ", " + c.decoder, err
}

func (c *containerd) pull(ctx context.Context, img *image, target string) (_ usage, retErr error) {
	cmd, err := c.start(ctx, target)
	if err != nil {
		return usage{}, err
	}
	defer func() { retErr = errors.Join(retErr, c.stop(cmd, target)) }()
	conn, err := grpc.NewClient("unix://"+c.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return usage{}, err
	}
	defer conn.Close()
	client := cri.NewImageServiceClient(conn)
	// The first answer comes when the daemon is up; what it took until then is not the image's cost.
	if _, err := client.ListImages(ctx, &cri.ListImagesRequest{}, grpc.WaitForReady(true)); err != nil {
		return usage{}, err
	}
	before, err := daemonCPU(cmd.Process.Pid)
	if err != nil {
		return usage{}, err
	}
	w := watch(target, cmd.Process.Pid)
	start := time.Now()
	_, err = client.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: c.registry.ref(img)}})
	u := usage{Wall: time.Since(start).Seconds()}
	u.memory, u.target = w.end()
	if err != nil {
		return u, err
	}
	after, err := daemonCPU(cmd.Process.Pid)
	u.CPU = after - before
	return u, err
}

// start runs a daemon whose root is the target. CRI of containerd takes plain http to loopback without being told.
func (c *containerd) start(ctx context.Context, target string) (*exec.Cmd, error) {
	decoder, args := c.decoder, ""
	if decoder == "" {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		decoder, args = self, "'decode'"
	}
	text := fmt.Sprintf(containerdConfig, target, c.scratch, c.socket, decoder, args, c.keyProvider.config)
	path := filepath.Join(c.scratch, "containerd.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(c.scratch, "containerd.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.CommandContext(ctx, c.binary, "--config", path)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd, cmd.Start()
}

// stop ends the daemon and removes what it wrote beside the target.
func (c *containerd) stop(cmd *exec.Cmd, target string) error {
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("stop containerd: %w", err)
	}
	_ = cmd.Wait() // it was told to end
	return errors.Join(os.RemoveAll(filepath.Join(c.scratch, "state")), os.RemoveAll(filepath.Join(target, "root")))
}
