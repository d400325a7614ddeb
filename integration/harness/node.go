package harness

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/coffer-project/coffer/integration/forgedsnp"
)

// Options vary a node.
type Options struct {
	// LocalPull makes CRI unpack by itself instead of through the transfer service.
	LocalPull bool
	// NodeDefault installs node-default mode.
	NodeDefault bool
	// GuestImages are patterns of images that a NodeDefault node leaves to guests.
	GuestImages []string
	// ShimConfig is appended to the shim's configuration file: whole TOML tables that the node does not write itself.
	ShimConfig string
	// Handlers are further runtime handlers of Coffer's, by their names. Each text is a drop-in that changes the
	// node's own configuration of the shim.
	Handlers map[string]string
	// Snapshotter is what images are pulled with when the puller names no handler, as most do; empty means overlayfs.
	Snapshotter string
	// ForgedSNP makes the host play one with SNP processors. The broker believes those and no guest without a TEE, and trusts no guest until
	// TrustGuest. The program must begin with forgedsnp.Intercept.
	ForgedSNP bool
	// Mirror answers for other registries. Both the host and, unless they bring a document of their own, guests ask it.
	Mirror *Mirror
}

// Node is a running containerd node with what it pulls from.
type Node struct {
	// Dir holds everything the node writes.
	Dir   string
	Tools Tools
	CA    *CA

	HTTP, HTTPS *Registry
	Broker      *Broker
	Snapshotter *Process
	Containerd  *Process
	CRI         *CRI

	ns     *netNS
	mirror *Server
	forged *forgedsnp.Host // nil without Options.ForgedSNP
	// defaultInstalled says that our second snapshotter runs, be it the default or not.
	defaultInstalled bool
	options          Options
}

// Start makes a node. When it fails, nothing is left behind but Dir's logs, which the error quotes.
func Start(ctx context.Context, options Options) (_ *Node, retErr error) {
	tools, err := FindTools()
	if err != nil {
		return nil, err
	}
	if os.Getuid() != 0 {
		return nil, errors.New("a node needs root: network namespaces and mounts")
	}
	// Unix socket paths may have 107 bytes, and containerd appends much: the folder's own path must be short.
	dir, err := os.MkdirTemp("/tmp", "cfr")
	if err != nil {
		return nil, err
	}
	// A container in a user namespace reaches its root file system below it.
	if err := os.Chmod(dir, 0o711); err != nil {
		return nil, err
	}
	n := &Node{Dir: dir, Tools: tools, options: options, defaultInstalled: options.NodeDefault}
	defer func() {
		if retErr != nil {
			retErr = errors.Join(retErr, n.Close())
		}
	}()

	if n.CA, err = newCA(dir); err != nil {
		return nil, err
	}
	if n.ns, err = newNetNS(ctx, "coffer-"+randomHex(4)); err != nil {
		return nil, err
	}
	if n.HTTP, err = startRegistry(ctx, n.ns, tools, dir, "registry-http", 5000, nil); err != nil {
		return nil, err
	}
	if n.HTTPS, err = startRegistry(ctx, n.ns, tools, dir, "registry-https", 5443, n.CA); err != nil {
		return nil, err
	}
	if err := n.forgeSNP(); err != nil {
		return nil, err
	}
	if n.Broker, err = n.startBroker(ctx); err != nil {
		return nil, err
	}
	if err := n.pushPause(ctx); err != nil {
		return nil, err
	}
	for _, r := range []*Registry{n.HTTP, n.HTTPS} {
		if err := n.TrustRegistry(r.Host, r.Plain); err != nil {
			return nil, err
		}
	}
	if err := n.startMirror(); err != nil {
		return nil, err
	}
	if err := n.writeShimConfig(); err != nil {
		return nil, err
	}
	if err := n.StartSnapshotter(ctx); err != nil {
		return nil, err
	}
	if err := n.StartContainerd(ctx); err != nil {
		return nil, err
	}
	n.CRI, err = dialCRI(n.path("containerd.sock"), n.path("logs"))
	return n, err
}

func (n *Node) path(name string) string { return filepath.Join(n.Dir, name) }

// StartSnapshotter starts the snapshotter on the node's state; it is for use after Snapshotter was stopped or killed.
func (n *Node) StartSnapshotter(ctx context.Context) error {
	config := fmt.Sprintf("root = %q\naddress = %q\ncontainerd_address = %q\n",
		n.path("snapshotter"), n.path("snapshotter.sock"), n.path("containerd.sock"))
	if n.defaultInstalled {
		var patterns []string
		for _, pattern := range n.options.GuestImages {
			patterns = append(patterns, strconv.Quote(pattern))
		}
		config += fmt.Sprintf("[node_default]\nroot = %q\naddress = %q\nguest = [%s]\n",
			n.path("snapshotter-default"), n.path("default.sock"), strings.Join(patterns, ", "))
	}
	path := n.path("snapshotter.toml")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		return err
	}
	var err error
	n.Snapshotter, err = startProcess(ctx, n.Dir, "snapshotter", n.ns.command(n.Tools.Snapshotter, "--config", path))
	return err
}

func (n *Node) writeShimConfig() error {
	qemu := n.Tools.QEMU
	if n.forged != nil {
		qemu = n.forged.Launcher
	}
	text := fmt.Sprintf(`state_dir = %q
[hypervisor]
path = %q
kernel = %q
initrd = %q
default_memory_mib = 512
%s`, n.path("shim"), qemu, n.Tools.Kernel, n.Tools.Initrd, n.options.ShimConfig)
	if n.mirror != nil {
		text += fmt.Sprintf("[initdata]\nfile = %q\n", n.path(mirrorDocument))
	}
	if err := os.WriteFile(n.path("shim.toml"), []byte(text), 0o600); err != nil {
		return err
	}
	for name, dropIn := range n.options.Handlers {
		path := n.shimConfigPath(name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return err
		}
		if err := os.Mkdir(path+".d", 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(path+".d", "10-test.toml"), []byte(dropIn), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// shimConfigPath is the shim's configuration for one of Options.Handlers.
func (n *Node) shimConfigPath(handler string) string { return n.path("shim-" + handler + ".toml") }

// Close removes all pods, ends every process in reverse order of its start, and removes the node's folder. It reports
// what outlived its pod.
func (n *Node) Close() error {
	var faults []error
	if n.CRI != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		faults = append(faults, n.CRI.RemoveAll(ctx), n.CRI.Close())
		cancel()
		faults = append(faults, n.Leftovers())
	}
	for _, p := range []*Process{n.Containerd, n.Snapshotter, n.Broker.proc(), n.HTTPS.proc(), n.HTTP.proc()} {
		if p != nil {
			faults = append(faults, p.Stop())
		}
	}
	if n.mirror != nil {
		faults = append(faults, n.mirror.Close())
	}
	if n.forged != nil {
		faults = append(faults, n.forged.Close())
	}
	if n.ns != nil {
		faults = append(faults, n.ns.Close())
	}
	if os.Getenv("COFFER_KEEP") == "" {
		faults = append(faults, os.RemoveAll(n.Dir))
	}
	return errors.Join(faults...)
}

func (r *Registry) proc() *Process {
	if r == nil {
		return nil
	}
	return r.process
}

func randomHex(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails: documented by crypto/rand
	return hex.EncodeToString(b)
}
