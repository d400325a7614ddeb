package initdata

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestSecrets(t *testing.T) {
	for name, tc := range map[string]struct {
		text    string
		want    SecretsConfig
		wantErr error
	}{
		"nothing":         {"", SecretsConfig{}, nil},
		"signers":         {"signers = [\"kbs:///a/b/c\"]", SecretsConfig{Signers: []string{"kbs:///a/b/c"}}, nil},
		"unsigned":        {"unsigned = true", SecretsConfig{Unsigned: true}, nil},
		"both":            {"unsigned = true\nsigners = [\"kbs:///a/b/c\"]", SecretsConfig{}, errdefs.ErrInvalidArgument},
		"another broker":  {"signers = [\"kbs://evil/a/b/c\"]", SecretsConfig{}, errdefs.ErrInvalidArgument},
		"no resource":     {"signers = [\"team\"]", SecretsConfig{}, errdefs.ErrInvalidArgument},
		"empty signer":    {"signers = [\"\"]", SecretsConfig{}, errdefs.ErrInvalidArgument},
		"unknown setting": {"signer = \"kbs:///a/b/c\"", SecretsConfig{}, errdefs.ErrInvalidArgument},
		"many":            {"signers = [" + strings.Repeat("\"kbs:///a/b/c\",", maxSigners+1) + "]", SecretsConfig{}, errdefs.ErrInvalidArgument},
	} {
		d := &Document{Data: map[string]string{KeyCoffer: "[secrets]\n" + tc.text}}
		got, err := d.Coffer()
		if !errors.Is(err, tc.wantErr) || err == nil && !reflect.DeepEqual(got.Secrets, tc.want) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
		if err != nil {
			continue
		}
		if again, err := ParseCoffer(got.Encode()); err != nil || !reflect.DeepEqual(again, got) {
			t.Errorf("%s: written and read again: %+v, %v", name, again, err)
		}
	}
	if c, err := (*Document)(nil).Coffer(); err != nil || c.Policy.Default != DefaultStrict {
		t.Errorf("no document: %+v, %v", c, err)
	}
}

func TestREST(t *testing.T) {
	for text, wantErr := range map[string]error{
		"": nil,
		"serve = [\"resource\", \"token\", \"evidence\"]": nil,
		"serve = [\"everything\"]":                        errdefs.ErrInvalidArgument,
		"serve = \"resource\"":                            errdefs.ErrInvalidArgument,
	} {
		got, err := ParseCoffer("[rest]\n" + text)
		if !errors.Is(err, wantErr) {
			t.Errorf("%s: %v", text, err)
		}
		if err != nil {
			continue
		}
		if again, err := ParseCoffer(got.Encode()); err != nil || !reflect.DeepEqual(again, got) {
			t.Errorf("%s: written and read again: %+v, %v", text, again, err)
		}
	}
}

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

func TestGPU(t *testing.T) {
	for text, want := range map[string]bool{"": false, "gpu.unprotected = true": true, "[gpu]\nunprotected = false": false} {
		got, err := ParseCoffer(text)
		if err != nil || got.GPU.Unprotected != want {
			t.Errorf("%s: %+v, %v", text, got, err)
			continue
		}
		if again, err := ParseCoffer(got.Encode()); err != nil || !reflect.DeepEqual(again, got) {
			t.Errorf("%s: written and read again: %+v, %v", text, again, err)
		}
	}
}
