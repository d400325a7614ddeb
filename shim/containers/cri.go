package containers

import (
	"encoding/json"
	"fmt"

	"github.com/containerd/errdefs"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// criExtension is where containerd's CRI keeps in a record what it was asked for, as JSON.
const criExtension = "io.cri-containerd.container.metadata"

// asksForGroup reads a record's extension. An empty one asks for nothing.
func asksForGroup(extension []byte) (bool, error) {
	if len(extension) == 0 {
		return false, nil
	}
	var asked struct {
		Metadata struct{ Config *cri.ContainerConfig }
	}
	if err := json.Unmarshal(extension, &asked); err != nil {
		return false, fmt.Errorf("what CRI was asked for is not JSON: %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	return asked.Metadata.Config.GetLinux().GetSecurityContext().GetRunAsGroup() != nil, nil
}
