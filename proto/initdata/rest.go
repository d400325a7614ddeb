package initdata

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
)

// What the guest's endpoint can give to the pod's own programs.
const (
	// RESTResource gives resources of the key broker.
	RESTResource = "resource"
	// RESTToken gives the key broker's token, with the key that it is for.
	RESTToken = "token"
	// RESTEvidence gives evidence with data of the program's choice, by which it can attest to others in the guest's name.
	RESTEvidence = "evidence"
)

// restFeatures are all of them.
var restFeatures = []string{RESTResource, RESTToken, RESTEvidence}

// RESTConfig is about the endpoint on the pod's loopback.
type RESTConfig struct {
	// Serve lists what it gives. Empty: there is no endpoint.
	Serve []string `toml:"serve"`
}

func (r *RESTConfig) validate() error {
	for _, feature := range r.Serve {
		if !slices.Contains(restFeatures, feature) {
			return fmt.Errorf("rest.serve has %q, which is none of %s: %w", clip(feature), strings.Join(restFeatures, ", "), errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

func (r *RESTConfig) encode() string {
	if len(r.Serve) == 0 {
		return ""
	}
	quoted := make([]string, len(r.Serve))
	for i, feature := range r.Serve {
		quoted[i] = strconv.Quote(feature)
	}
	return "[rest]\nserve = [" + strings.Join(quoted, ", ") + "]\n"
}
