package transport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/mdlayher/vsock"

	"github.com/coffer-project/coffer/guestpull/uevent"
	"github.com/coffer-project/coffer/proto/mux"
)

// anyCID is what a kernel without a vsock device answers for its own address.
const anyCID = 1<<32 - 1

// sysfs is where the kernel shows its devices.
type sysfs struct {
	root, dev string
	// cid asks for the machine's own vsock address.
	cid func() (uint32, error)
}

// waitForChannel looks for a channel now and after every device event.
func waitForChannel(ctx context.Context, fs sysfs) (*Transport, error) {
	return waitFor(ctx, "a control channel", func() (*Transport, error) { return fs.find(ctx) })
}

// waitFor calls find now and after every device event, for as long as it returns errdefs.ErrNotFound.
func waitFor[T any](ctx context.Context, what string, find func() (T, error)) (T, error) {
	var none T
	events, err := uevent.Open()
	if err != nil {
		return none, fmt.Errorf("watch for devices: %w", err)
	}
	defer events.Close()
	for {
		found, err := find()
		if err == nil || !errdefs.IsNotFound(err) {
			return found, err
		}
		if waitErr := events.Wait(ctx); waitErr != nil {
			return none, fmt.Errorf("wait for %s: %w", what, errors.Join(waitErr, err))
		}
	}
}

// find looks once. It returns errdefs.ErrNotFound when there is no channel yet.
func (fs sysfs) find(ctx context.Context) (*Transport, error) {
	node, err := fs.findPort(mux.PortName)
	switch {
	case err == nil:
		return newSerial(ctx, node), nil
	case !errdefs.IsNotFound(err):
		return nil, err
	}
	if cid, err := fs.cid(); err == nil && cid != anyCID {
		return newVsock(cid), nil
	}
	return nil, fmt.Errorf("the machine has neither a virtio serial port %q nor a vsock device: %w", mux.PortName, errdefs.ErrNotFound)
}

// findPort returns the device node of the virtio serial port with the name.
func (fs sysfs) findPort(name string) (string, error) {
	files, err := filepath.Glob(filepath.Join(fs.root, "class/virtio-ports/*/name"))
	if err != nil {
		return "", err
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) {
			continue // unplugged since
		}
		if err != nil {
			return "", fmt.Errorf("read name of virtio serial port: %w", err)
		}
		if strings.TrimSpace(string(text)) == name {
			return filepath.Join(fs.dev, filepath.Base(filepath.Dir(file))), nil
		}
	}
	return "", fmt.Errorf("virtio serial port %q: %w", name, errdefs.ErrNotFound)
}

// newVsock serves ports directly: one connection per stream.
func newVsock(cid uint32) *Transport {
	return &Transport{
		kind:   "vsock",
		listen: func(port uint32) (net.Listener, error) { return vsock.ListenContextID(cid, port, nil) },
	}
}
