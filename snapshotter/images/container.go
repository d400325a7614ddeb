package images

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/distribution/reference"
)

// annotationImage is CRI's: the image as the pod's author wrote it.
const annotationImage = "io.kubernetes.cri.image-name"

// Container is what containerd records of a container.
type Container struct {
	// Image is the full name of its image, as the pod calls it, or else containerd. It is empty where there is none.
	Image string
	// Runtime is such as io.containerd.runc.v2.
	Runtime string
}

// Container returns what is recorded of a container. NotFound: there is none yet; its snapshot is made first.
func (c *Client) Container(ctx context.Context, id string) (found Container, err error) {
	err = c.ask(ctx, "container "+id, func(ctx context.Context) error {
		resp, err := c.containers.Get(ctx, &containersapi.GetContainerRequest{ID: id})
		if err != nil {
			return errgrpc.ToNative(err)
		}
		record := resp.GetContainer()
		found = Container{Image: record.GetImage(), Runtime: record.GetRuntime().GetName()}
		name, err := namedByPod(record.GetSpec().GetValue())
		if err != nil {
			return fmt.Errorf("specification: %w", err)
		}
		// CRI takes any name for the image that has the same configuration; the pod's is the one that was pulled for it.
		for _, candidate := range []string{name, found.Image} {
			if found.Image = fullName(candidate); found.Image != "" {
				break
			}
		}
		return nil
	})
	return found, err
}

func namedByPod(spec []byte) (string, error) {
	if len(spec) == 0 {
		return "", nil
	}
	if len(spec) > maxDocument {
		return "", fmt.Errorf("%d bytes are more than %d: %w", len(spec), maxDocument, errdefs.ErrInvalidArgument)
	}
	var document struct {
		Annotations map[string]string `json:"annotations"`
	}
	if err := json.Unmarshal(spec, &document); err != nil {
		return "", fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	return document.Annotations[annotationImage], nil
}

// fullName writes out what people leave away, as containerd does; empty for what is no name of an image.
func fullName(name string) string {
	named, err := reference.ParseDockerRef(name)
	if err != nil || strings.HasPrefix(name, "sha256:") { // which CRI calls an image, too
		return ""
	}
	return named.String()
}
