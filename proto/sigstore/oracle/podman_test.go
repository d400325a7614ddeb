package oracle

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/image"
	"go.podman.io/image/v5/signature"
	"go.podman.io/image/v5/types"

	"github.com/coffer-project/coffer/owner/sign"
)

// podman asks podman's library for its verdict on a policy and a reference.
func (s *signed) podman(t *testing.T, policy, ref string) error {
	t.Helper()
	parsed, err := signature.NewPolicyFromBytes([]byte(policy))
	if err != nil {
		return err
	}
	decide, err := signature.NewPolicyContext(parsed)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := decide.Destroy(); err != nil {
			t.Error(err)
		}
	}()
	dir := t.TempDir()
	config := fmt.Sprintf("docker:\n  %s:\n    use-sigstore-attachments: true\n", s.registry.Addr())
	if s.lookaside != "" {
		config += "    lookaside: " + s.lookaside + "\n"
	}
	if err := os.WriteFile(filepath.Join(dir, "test.yaml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	named, err := docker.ParseReference("//" + ref)
	if err != nil {
		t.Fatal(err)
	}
	system := &types.SystemContext{RegistriesDirPath: dir, DockerInsecureSkipTLSVerify: types.OptionalBoolTrue, SystemRegistriesConfPath: os.DevNull, AuthFilePath: filepath.Join(dir, "auth.json")}
	source, err := named.NewImageSource(t.Context(), system)
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	allowed, err := decide.IsRunningImageAllowed(t.Context(), image.UnparsedInstance(source, nil))
	if allowed != (err == nil) {
		t.Fatalf("allowed is %t, with %v", allowed, err)
	}
	return err
}

// TestPodmanAcceptsOurs: the older form of what we sign is what podman and CRI-O take, with each kind of key that they know.
func TestPodmanAcceptsOurs(t *testing.T) {
	for _, kind := range sign.Kinds {
		s := newSigned(t, kind, "/team/app:1")
		if err := s.podman(t, s.policy(`{"type":"matchExact"}`), s.ref); err != nil {
			t.Errorf("%s: ours is refused: %v", kind, err)
		}
		other := newSigned(t, kind, "/team/app:1")
		if err := s.podman(t, strings.ReplaceAll(other.policy(`{"type":"matchRepository"}`), other.registry.Addr(), s.registry.Addr()), s.ref); err == nil {
			t.Errorf("%s: ours is taken for another key's", kind)
		}
	}
}

// TestSameVerdicts: podman and we decide alike about the same image, for each rule of identities, for images by tag and by
// digest, and for signatures with and without a tag.
func TestSameVerdicts(t *testing.T) {
	for _, identity := range []string{"/team/app", "/team/app:1", "/team/app:2", "/team/other:1", "/team:1"} {
		s := newSigned(t, "ecdsa-p256", identity)
		host := s.registry.Addr()
		accepted := 0
		for _, rule := range []string{
			`{"type":"matchExact"}`, `{"type":"matchRepoDigestOrExact"}`, `{"type":"matchRepository"}`,
			`{"type":"exactReference","dockerReference":"HOST/team/app:1"}`, `{"type":"exactReference","dockerReference":"HOST/team/app:2"}`,
			`{"type":"exactRepository","dockerRepository":"HOST/team/app"}`, `{"type":"exactRepository","dockerRepository":"HOST/team/other"}`,
			`{"type":"remapIdentity","prefix":"HOST/team/app","signedPrefix":"HOST/team/other"}`,
			`{"type":"remapIdentity","prefix":"HOST/team/app","signedPrefix":"HOST/team"}`,
			`{"type":"remapIdentity","prefix":"HOST","signedPrefix":"x.example"}`, `{"type":"remapIdentity","prefix":"HOST/tea","signedPrefix":"x.example"}`,
		} {
			policy := s.policy(strings.ReplaceAll(rule, "HOST", host))
			for _, ref := range []string{s.ref, host + "/team/app@" + s.image.Desc.Digest.String()} {
				theirs, ours := s.podman(t, policy, ref), s.ours(t.Context(), policy, ref)
				if (theirs == nil) != (ours == nil) {
					t.Errorf("signed as %s, asked as %s, %s: podman says %v, we say %v", identity, ref, rule, theirs, ours)
				}
				if ours == nil {
					accepted++
				}
			}
		}
		if accepted == 0 || accepted == 22 {
			t.Errorf("signed as %s: %d of 22 accepted, which compares nothing", identity, accepted)
		}
	}
}

// TestSameScopes: podman and we find the same requirements for an image.
func TestSameScopes(t *testing.T) {
	s := newSigned(t, "ed25519", "/team/app")
	host, _, _ := strings.Cut(s.registry.Addr(), ":")
	scopes := []string{
		s.ref, s.registry.Addr() + "/team/app@" + s.image.Desc.Digest.String(), s.registry.Addr() + "/team/app", s.registry.Addr() + "/team", s.registry.Addr() + "/tea",
		s.registry.Addr() + "/team/app:2", s.registry.Addr(), host, "*.0.0.1", "*.0.1", "*.1", "",
	}
	for skip := range scopes {
		// What is accepted changes with the scope that decides: each second one rejects.
		var list []string
		for i, scope := range scopes[skip:] {
			list = append(list, fmt.Sprintf(`%q:[{"type":%q}]`, scope, []string{"insecureAcceptAnything", "reject"}[i%2]))
		}
		policy := `{"default":[{"type":"reject"}],"transports":{"docker":{` + strings.Join(list, ",") + `}}}`
		for _, ref := range scopes[:2] {
			theirs, ours := s.podman(t, policy, ref), s.ours(t.Context(), policy, ref)
			if (theirs == nil) != (ours == nil) {
				t.Errorf("%s without the first %d scopes: podman says %v, we say %v", ref, skip, theirs, ours)
			}
		}
	}
}
