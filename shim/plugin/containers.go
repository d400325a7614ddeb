package plugin

import (
	"context"
	"fmt"
	"time"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// askTimeout bounds a question to containerd, which waits for the shim meanwhile.
const askTimeout = 5 * time.Second

// imageNames asks the containerd that listens on a unix socket what it calls the image of a container; empty when it does
// not know the container, or the container has no image. The context names containerd's namespace. It fails with
// errdefs.ErrUnavailable when containerd does not answer.
func imageNames(address string) func(ctx context.Context, id string) (string, error) {
	return func(ctx context.Context, id string) (string, error) {
		ctx, cancel := context.WithTimeout(ctx, askTimeout)
		defer cancel()
		namespace, err := namespaces.NamespaceRequired(ctx)
		if err != nil {
			return "", err
		}
		conn, err := grpc.NewClient("unix://"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return "", fmt.Errorf("reach containerd at %s: %w: %w", address, err, errdefs.ErrInvalidArgument)
		}
		defer conn.Close()
		// WithNamespace puts it into the headers of this call, too.
		response, err := containersapi.NewContainersClient(conn).Get(namespaces.WithNamespace(ctx, namespace), &containersapi.GetContainerRequest{ID: id})
		switch err = errgrpc.ToNative(err); {
		case errdefs.IsNotFound(err):
			return "", nil
		case err != nil:
			return "", fmt.Errorf("ask containerd at %s for the image of container %s: %w: %w", address, id, err, errdefs.ErrUnavailable)
		}
		return response.GetContainer().GetImage(), nil
	}
}
