package doctor

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/metadata"

	"github.com/coffer-project/coffer/node/pods"
	shim "github.com/coffer-project/coffer/shim/config"
	"github.com/coffer-project/coffer/shim/netns"
	"github.com/coffer-project/coffer/shim/network"
	"github.com/coffer-project/coffer/shim/plugin/driver"
	"github.com/coffer-project/coffer/shim/tee"
	"github.com/coffer-project/coffer/snapshotter/images"
)

// RealProbes try things out on this machine.
func RealProbes() Probes {
	return Probes{
		Boot: boot, Snapshotter: askSnapshotter, Network: joinNetwork, Broker: askBroker,
		Synchronised: synchronised, SEV: tee.Machine{}.SEV, Orphans: countOrphans,
	}
}

// boot decides as the shim does, and leaves what it found out where the shim will look.
func boot(ctx context.Context, c *shim.Config) (accelerator, reason string, err error) {
	d, err := driver.New(c)
	if err != nil {
		return "", "", err
	}
	taken, reason, err := d.Probe(ctx, c.Hypervisor.Kernel)
	return string(taken), reason, err
}

// askSnapshotter asks for a snapshot that cannot exist: a snapshotter that says so is one.
func askSnapshotter(ctx context.Context, address string) error {
	conn, err := images.Dial(address)
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx = metadata.AppendToOutgoingContext(ctx, "containerd-namespace", "k8s.io")
	_, err = snapshotsapi.NewSnapshotsClient(conn).Stat(ctx, &snapshotsapi.StatSnapshotRequest{Key: "k8s.io/0/cofferctl-doctor"})
	if err = errgrpc.ToNative(err); errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// joinNetwork does to an interface of its own what the shim does to a pod's.
func joinNetwork(ctx context.Context) error {
	path, end := "", make(chan struct{})
	defer close(end)
	made := make(chan error)
	netns.Thread(func() {
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			path = fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid())
			err = addInterface()
		}
		made <- err
		<-end
	})
	if err := <-made; err != nil {
		return fmt.Errorf("make a network namespace: %w", err)
	}
	attachment, err := network.Attach(ctx, path)
	if err != nil {
		return err
	}
	return attachment.Detach(ctx)
}

// addInterface makes a pod's interface in the calling thread's namespace.
func addInterface() error {
	attributes := netlink.NewLinkAttrs()
	attributes.Name = "eth0"
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attributes, PeerName: "peer0"}); err != nil {
		return fmt.Errorf("add a veth pair: %w", err)
	}
	for _, name := range []string{"eth0", "peer0"} {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return err
		}
	}
	link, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	address, err := netlink.ParseAddr("192.0.2.2/24")
	if err != nil {
		return err
	}
	return netlink.AddrAdd(link, address)
}

// askBroker takes any answer, also a refusal: only guests are given more.
func askBroker(ctx context.Context, url, roots string) error {
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if roots != "" && !pool.AppendCertsFromPEM([]byte(roots)) {
		return errors.New("its certificate in initdata is no PEM certificate")
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, DisableKeepAlives: true}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return err
	}
	return response.Body.Close()
}

func synchronised() (bool, error) {
	state, err := unix.Adjtimex(new(unix.Timex))
	if err != nil {
		return false, fmt.Errorf("ask the kernel's clock: %w", err)
	}
	return state != unix.TIME_ERROR, nil
}

func countOrphans(ctx context.Context, stateDir string) (int, error) {
	list, err := pods.List(ctx, stateDir)
	count := 0
	for _, pod := range list {
		if pod.Orphan {
			count++
		}
	}
	return count, err
}
