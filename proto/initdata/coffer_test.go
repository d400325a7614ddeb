package initdata

import (
	"errors"
	"testing"

	"github.com/containerd/errdefs"
)

func TestPolicyDefault(t *testing.T) {
	for name, tc := range map[string]struct {
		coffer, policy string
		want           string
		wantErr        error
	}{
		"nothing":         {"", "", DefaultStrict, nil},
		"strict":          {"[policy]\ndefault = \"strict\"\n", "", DefaultStrict, nil},
		"development":     {"[policy]\ndefault = \"development\"\n", "", DefaultDevelopment, nil},
		"policy":          {"", "package agent_policy", "", nil},
		"policy, strict":  {"[policy]\ndefault = \"strict\"\n", "package agent_policy", "", nil},
		"both":            {"[policy]\ndefault = \"development\"\n", "package agent_policy", "", errdefs.ErrInvalidArgument},
		"other default":   {"[policy]\ndefault = \"lenient\"\n", "", "", errdefs.ErrInvalidArgument},
		"unknown key":     {"[policy]\nfallback = \"development\"\n", "", "", errdefs.ErrInvalidArgument},
		"not TOML at all": {"development", "", "", errdefs.ErrInvalidArgument},
	} {
		d := &Document{Data: map[string]string{}}
		if tc.coffer != "" {
			d.Data[KeyCoffer] = tc.coffer
		}
		if tc.policy != "" {
			d.Data[KeyPolicy] = tc.policy
		}
		got, err := d.PolicyDefault()
		if got != tc.want || !errors.Is(err, tc.wantErr) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}
