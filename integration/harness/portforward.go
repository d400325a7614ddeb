package harness

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync/atomic"

	"github.com/moby/spdystream"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// portForwardProtocol is Kubernetes' name for what is said in the streams of a port-forward.
const portForwardProtocol = "portforward.k8s.io"

// PortForward is a client of a pod's ports: what kubectl port-forward opens, less the listener on the user's machine.
type PortForward struct {
	conn     *spdystream.Connection
	requests atomic.Int64
}

// PortForward asks containerd for a port-forward to the pod and connects to the address that it names.
func (n *Node) PortForward(ctx context.Context, pod *Pod) (_ *PortForward, retErr error) {
	resp, err := n.CRI.Runtime.PortForward(ctx, &runtime.PortForwardRequest{PodSandboxId: pod.ID})
	if err != nil {
		return nil, fmt.Errorf("port-forward to pod %s: %w", pod.ID, err)
	}
	target, err := url.Parse(resp.Url)
	if err != nil {
		return nil, err
	}
	raw, err := n.ns.Dial(ctx, "tcp", target.Host)
	if err != nil {
		return nil, err
	}
	defer func() {
		if retErr != nil {
			raw.Close()
		}
	}()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, resp.Url, nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Connection", "Upgrade")
	request.Header.Set("Upgrade", "SPDY/3.1")
	request.Header.Set("X-Stream-Protocol-Version", portForwardProtocol)
	if err := request.Write(raw); err != nil {
		return nil, err
	}
	// The server says nothing more before the first stream is opened, so the reader cannot take anything of it.
	answer, err := http.ReadResponse(bufio.NewReader(raw), request)
	if err != nil {
		return nil, fmt.Errorf("upgrade %s: %w", resp.Url, err)
	}
	if answer.StatusCode != http.StatusSwitchingProtocols {
		return nil, fmt.Errorf("upgrade %s: %s", resp.Url, answer.Status)
	}
	conn, err := spdystream.NewConnection(raw, false)
	if err != nil {
		return nil, err
	}
	go conn.Serve(spdystream.NoOpStreamHandler)
	return &PortForward{conn: conn}, nil
}

// Close drops the connection and with it all streams.
func (p *PortForward) Close() error { return p.conn.Close() }

// Forwarded is one connection to a port of the pod.
type Forwarded struct {
	data, fault *spdystream.Stream
}

// Dial opens a connection to a port. That nobody listens there is seen by what it ends with.
func (p *PortForward) Dial(port uint16) (*Forwarded, error) {
	headers := func(kind string) http.Header {
		h := http.Header{}
		h.Set("streamType", kind)
		h.Set("port", strconv.Itoa(int(port)))
		return h
	}
	id := strconv.FormatInt(p.requests.Add(1), 10)
	open := func(kind string) (*spdystream.Stream, error) {
		h := headers(kind)
		h.Set("requestID", id)
		stream, err := p.conn.CreateStream(h, nil, false)
		if err != nil {
			return nil, err
		}
		return stream, stream.Wait()
	}
	fault, err := open("error")
	if err != nil {
		return nil, fmt.Errorf("open error stream for port %d: %w", port, err)
	}
	// Nothing is ever said to the server on it.
	if err := fault.Close(); err != nil {
		return nil, err
	}
	data, err := open("data")
	if err != nil {
		return nil, fmt.Errorf("open data stream for port %d: %w", port, err)
	}
	return &Forwarded{data: data, fault: fault}, nil
}

// Write sends to the pod.
func (f *Forwarded) Write(p []byte) (int, error) { return f.data.Write(p) }

// ReadAll reads what the pod sends until it ends. The error is the server's word of what went wrong.
func (f *Forwarded) ReadAll() ([]byte, error) {
	got, err := io.ReadAll(f.data)
	if errors.Is(err, spdystream.ErrReset) {
		err = nil // the error stream says why
	}
	text, faultErr := io.ReadAll(f.fault)
	if len(text) > 0 {
		return got, errors.New(string(text))
	}
	if errors.Is(faultErr, spdystream.ErrReset) {
		faultErr = nil
	}
	return got, errors.Join(err, faultErr)
}

// Close ends the client's direction.
func (f *Forwarded) Close() error { return f.data.Close() }

// Dial connects to an address in the node's network.
func (n *Node) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	return n.ns.Dial(ctx, network, address)
}

// DialPod connects to an address inside the pod's network namespace on the host, as containerd does for a port-forward.
func (n *Node) DialPod(ctx context.Context, pod *Pod, network, address string) (*net.TCPConn, error) {
	// The VM's monitor runs in the pod's namespace.
	monitor, err := n.VMPID(pod)
	if err != nil {
		return nil, err
	}
	var conn net.Conn
	err = inNetNS(fmt.Sprintf("/proc/%d/ns/net", monitor), func() (err error) {
		conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
		return err
	})
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}
