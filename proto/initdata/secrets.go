package initdata

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/proto/kbs"
)

// SecretsConfig says which sealed secrets a guest opens. Without any of it that is a secret that is signed, by a key that the key broker
// has under the name in the secret.
type SecretsConfig struct {
	// Signers are the only keys whose signature counts: resources of the key broker, kbs:///repository/type/tag.
	Signers []string `toml:"signers"`
	// Unsigned allows secrets without a signature as well. Whoever chooses variables can then put any resource that the key broker gives to
	// the guest into any of them, so it is for policies that bind the variables' values.
	Unsigned bool `toml:"unsigned"`
}

// maxSigners bounds SecretsConfig.Signers.
const maxSigners = 64

func (s *SecretsConfig) validate() error {
	switch {
	case s.Unsigned && len(s.Signers) > 0:
		return fmt.Errorf("secrets.unsigned would make secrets.signers worthless: remove one: %w", errdefs.ErrInvalidArgument)
	case len(s.Signers) > maxSigners:
		return fmt.Errorf("secrets.signers has %d keys, the limit is %d: %w", len(s.Signers), maxSigners, errdefs.ErrInvalidArgument)
	}
	for i, signer := range s.Signers {
		uri, err := kbs.ParseResourceURI(signer)
		if err != nil {
			return fmt.Errorf("secrets.signers[%d]: %w", i, err)
		}
		if uri.Address != "" {
			return fmt.Errorf("secrets.signers[%d] names a key broker, and the guest asks only its own: write kbs:///%s: %w", i, uri.Path(), errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

func (s *SecretsConfig) encode() string {
	var out strings.Builder
	if len(s.Signers) > 0 {
		quoted := make([]string, len(s.Signers))
		for i, signer := range s.Signers {
			quoted[i] = strconv.Quote(signer)
		}
		fmt.Fprintf(&out, "signers = [%s]\n", strings.Join(quoted, ", "))
	}
	if s.Unsigned {
		out.WriteString("unsigned = true\n")
	}
	if out.Len() == 0 {
		return ""
	}
	return "[secrets]\n" + out.String()
}
