package integration

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coffer-project/coffer/integration/harness"
)

// The ports of the servers in the pod.
const (
	portLoopback  = 8080 // on 127.0.0.1 only
	portEverybody = 8081 // on all addresses
	portIPv6      = 8082 // on ::1 only
	portSum       = 8083 // reads to the end, then answers with the SHA-256
	portCount     = 8084 // reads countSize bytes, then answers with the SHA-256
	portClosed    = 9999
	portOnHost    = 18081

	countSize  = 4 << 20
	largeSize  = 8 << 20
	serverLine = "0123456789abcde\n"
)

// serve starts the servers. busybox's nc listens on all addresses; the netns of the test reaches only loopback.
const serve = `
busybox mkdir -p /tmp/www
echo hello >/tmp/www/hello
yes 0123456789abcde | head -c 8388608 >/tmp/www/large
printf '#!/bin/sh\nhead -c 4194304 | sha256sum\n' >/tmp/count
busybox chmod 755 /tmp/count
busybox httpd -p 127.0.0.1:8080 -h /tmp/www
busybox httpd -p 8081 -h /tmp/www
busybox httpd -p '[::1]:8082' -h /tmp/www
busybox nc -ll -p 8083 -e /bin/sha256sum &
busybox nc -ll -p 8084 -e /tmp/count &
until wget -q -O /dev/null http://127.0.0.1:8081/hello; do sleep 0.1; done
echo serving
wait
`

// TestPortForward reaches servers in a pod as kubectl port-forward does, and by a port of the node.
func TestPortForward(t *testing.T) {
	t.Parallel()
	node := sharedNode(t)
	reference := node.HTTP.Host + "/" + slug(t) + ":v1"
	if err := node.Ctl(t.Context(), true, "image", "copy", "oci:"+busyboxLayout(t, node).Dir, reference, "--plain-http"); err != nil {
		t.Fatal(err)
	}
	l := newLab(t, node, "coffer", reference, func(config *runtime.PodSandboxConfig) {
		config.PortMappings = []*runtime.PortMapping{{ContainerPort: portEverybody, HostPort: portOnHost}}
	})
	c := l.start(t, nil, "/bin/sh", "-c", serve)
	l.says(t, c, "serving")

	forward, err := node.PortForward(l.ctx(t), l.pod)
	if err != nil {
		t.Fatal(err)
	}
	defer forward.Close()
	t.Run("one after the other", func(t *testing.T) { forwardEach(t, forward) })
	t.Run("in parallel", func(t *testing.T) { forwardParallel(t, forward) })
	t.Run("upload", func(t *testing.T) { forwardUpload(t, forward) })
	t.Run("half closed", func(t *testing.T) { forwardHalfClosed(t, l) })
	t.Run("port of the node", func(t *testing.T) {
		client := &http.Client{Transport: &http.Transport{DialContext: node.Dial}}
		request, err := http.NewRequestWithContext(l.ctx(t), http.MethodGet,
			fmt.Sprintf("http://%s:%d/hello", harness.NodeIP, portOnHost), nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if body, err := io.ReadAll(resp.Body); string(body) != "hello\n" || err != nil {
			t.Errorf("got %q, %v", body, err)
		}
	})
	t.Run("nothing is left", func(t *testing.T) {
		l.remove(t)
		if err := node.Leftovers(); err != nil {
			t.Error(err)
		}
	})
}

// get asks a web server of the pod for a file and returns its content.
func get(forward *harness.PortForward, port uint16, file string) ([]byte, error) {
	conn, err := forward.Dial(port)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if _, err := fmt.Fprintf(conn, "GET /%s HTTP/1.0\r\n\r\n", file); err != nil {
		return nil, err
	}
	answer, err := conn.ReadAll()
	if err != nil {
		return nil, err
	}
	_, body, found := bytes.Cut(answer, []byte("\r\n\r\n"))
	if !found {
		return nil, fmt.Errorf("no HTTP answer: %.200q", answer)
	}
	return body, nil
}

func forwardEach(t *testing.T, forward *harness.PortForward) {
	large := strings.Repeat(serverLine, largeSize/len(serverLine))
	for name, test := range map[string]struct {
		port    uint16
		file    string
		want    string
		wantErr string
	}{
		"loopback":  {portLoopback, "hello", "hello\n", ""},
		"everybody": {portEverybody, "hello", "hello\n", ""},
		"IPv6":      {portIPv6, "hello", "hello\n", ""},
		"large":     {portLoopback, "large", large, ""},
		"closed":    {portClosed, "hello", "", "reset by peer"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := get(forward, test.port, test.file)
			switch {
			case test.wantErr != "":
				if err == nil || !strings.Contains(err.Error(), test.wantErr) {
					t.Errorf("got %v, want %q", err, test.wantErr)
				}
			case err != nil:
				t.Error(err)
			case string(got) != test.want:
				t.Errorf("got %d bytes %.100q, want %d", len(got), got, len(test.want))
			}
		})
	}
}

// forwardParallel has many connections at a time, on each of the ports.
func forwardParallel(t *testing.T, forward *harness.PortForward) {
	faults := make([]error, 20)
	var work sync.WaitGroup
	for i := range faults {
		work.Go(func() {
			got, err := get(forward, portLoopback+uint16(i%3), "hello")
			if err == nil && string(got) != "hello\n" {
				err = fmt.Errorf("got %q", got)
			}
			if err != nil {
				faults[i] = fmt.Errorf("connection %d: %w", i, err)
			}
		})
	}
	work.Wait()
	if err := errors.Join(faults...); err != nil {
		t.Error(err)
	}
}

// forwardUpload sends much to a server that then answers.
func forwardUpload(t *testing.T, forward *harness.PortForward) {
	conn, err := forward.Dial(portCount)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	data := bytes.Repeat([]byte(serverLine), countSize/len(serverLine))
	if _, err := conn.Write(data); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("%x  -\n", sha256.Sum256(data))
	if got, err := conn.ReadAll(); string(got) != want || err != nil {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
}

// forwardHalfClosed ends its own direction and waits for the answer: containerd's port-forward cannot pass that on, so the
// connection is made where containerd makes its own.
func forwardHalfClosed(t *testing.T, l *lab) {
	for network, host := range map[string]string{"tcp4": "127.0.0.1", "tcp6": "[::1]"} {
		t.Run(network, func(t *testing.T) {
			conn, err := l.node.DialPod(l.ctx(t), l.pod, network, fmt.Sprintf("%s:%d", host, portSum))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			defer context.AfterFunc(l.ctx(t), func() { conn.Close() })()
			data := bytes.Repeat([]byte(serverLine), largeSize/len(serverLine))
			if _, err := conn.Write(data); err != nil {
				t.Fatal(err)
			}
			if err := conn.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			want := fmt.Sprintf("%x  -\n", sha256.Sum256(data))
			if got, err := io.ReadAll(conn); string(got) != want || err != nil {
				t.Errorf("got %q, %v; want %q", got, err, want)
			}
		})
	}
	t.Run("closed port", func(t *testing.T) {
		conn, err := l.node.DialPod(l.ctx(t), l.pod, "tcp4", fmt.Sprintf("127.0.0.1:%d", portClosed))
		if err == nil {
			defer conn.Close()
			_, err = io.ReadAll(conn)
		}
		if !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("got %v, want a reset", err)
		}
	})
}
