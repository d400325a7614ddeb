package containers

import (
	"context"
	"fmt"
	"time"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

// askTimeout bounds what is asked of containerd, which waits for the shim meanwhile.
const askTimeout = 5 * time.Second

// Client asks one containerd. It holds no connection between calls, of which a container needs one or two in its life.
// The context of each call names containerd's namespace.
type Client struct{ address string }

// New returns a client of the containerd that listens on the unix socket address. It does not connect.
func New(address string) *Client { return &Client{address: address} }

// Image returns what containerd calls the image of a container; empty when it does not know the container, or the
// container has no image. It fails with errdefs.ErrUnavailable when containerd does not answer.
func (c *Client) Image(ctx context.Context, id string) (name string, err error) {
	err = c.ask(ctx, func(ctx context.Context, records containersapi.ContainersClient) error {
		response, err := records.Get(ctx, &containersapi.GetContainerRequest{ID: id})
		switch err = errgrpc.ToNative(err); {
		case errdefs.IsNotFound(err):
			return nil
		case err != nil:
			return fmt.Errorf("ask containerd at %s for the image of container %s: %w: %w", c.address, id, err, errdefs.ErrUnavailable)
		}
		name = response.GetContainer().GetImage()
		return nil
	})
	return name, err
}

// AsksForGroup tells whether whoever had CRI make a container asked for its primary group by number. The specification cannot
// say so: its group 0 may also mean that containerd found none. A container that CRI did not make asks for none, and so does one
// that containerd does not know. It fails with errdefs.ErrUnavailable when containerd does not answer.
func (c *Client) AsksForGroup(ctx context.Context, id string) (asks bool, err error) {
	err = c.ask(ctx, func(ctx context.Context, records containersapi.ContainersClient) error {
		response, err := records.Get(ctx, &containersapi.GetContainerRequest{ID: id})
		switch err = errgrpc.ToNative(err); {
		case errdefs.IsNotFound(err):
			return nil
		case err != nil:
			return fmt.Errorf("ask containerd at %s for the wishes of container %s: %w: %w", c.address, id, err, errdefs.ErrUnavailable)
		}
		asks, err = asksForGroup(response.GetContainer().GetExtensions()[criExtension].GetValue())
		if err != nil {
			return fmt.Errorf("record of container %s in containerd at %s: %w", id, c.address, err)
		}
		return nil
	})
	return asks, err
}

// SetUser makes containerd's record say that the container's process runs as user. Nothing else of the record changes;
// one that says so already is not written. It fails with errdefs.ErrNotFound when there is no such record, and with
// errdefs.ErrFailedPrecondition when its specification is not one of a process.
//
// containerd has no way to change a record only if nobody else has meanwhile. Between the reading and the writing there is
// nothing but the way to containerd and back, and whoever else writes the specification (CRI's update of resources) then
// changes the task, too: the shim sets the user again after that.
func (c *Client) SetUser(ctx context.Context, id string, user specs.User) error {
	return c.ask(ctx, func(ctx context.Context, records containersapi.ContainersClient) error {
		response, err := records.Get(ctx, &containersapi.GetContainerRequest{ID: id})
		if err != nil {
			return fmt.Errorf("read record of container %s in containerd at %s: %w", id, c.address, errgrpc.ToNative(err))
		}
		spec := response.GetContainer().GetSpec()
		changed, err := withUser(spec.GetValue(), user)
		if err != nil {
			return fmt.Errorf("record of container %s in containerd at %s: %w", id, c.address, err)
		}
		if changed == nil {
			return nil
		}
		_, err = records.Update(ctx, &containersapi.UpdateContainerRequest{
			Container:  &containersapi.Container{ID: id, Spec: &anypb.Any{TypeUrl: spec.GetTypeUrl(), Value: changed}},
			UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"spec"}},
		})
		if err != nil {
			return fmt.Errorf("correct record of container %s in containerd at %s: %w", id, c.address, errgrpc.ToNative(err))
		}
		return nil
	})
}

// ask connects for the time of fn.
func (c *Client) ask(ctx context.Context, fn func(ctx context.Context, records containersapi.ContainersClient) error) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	namespace, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return err
	}
	conn, err := grpc.NewClient("unix://"+c.address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("reach containerd at %s: %w: %w", c.address, err, errdefs.ErrInvalidArgument)
	}
	defer conn.Close()
	// WithNamespace puts it into the headers of these calls, too.
	return fn(namespaces.WithNamespace(ctx, namespace), containersapi.NewContainersClient(conn))
}
