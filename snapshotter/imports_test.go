package snapshotter

import (
	"os/exec"
	"strings"
	"testing"
)

// TestImports holds what the package comment promises: no code that talks to a registry or decrypts a layer is even
// linked, and the parties meet in proto only.
func TestImports(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "./...", "../cmd/coffer-snapshotter").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	const module = "github.com/coffer-project/coffer/"
	deps := strings.Fields(string(out))
	if len(deps) < 100 {
		t.Fatalf("go list found %d packages only", len(deps))
	}
	for _, dep := range deps {
		for _, word := range []string{"core/remotes", "docker/resolver", "core/transfer", "containerd/v2/client", "ocicrypt", "imgcrypt"} {
			if strings.Contains(dep, word) {
				t.Errorf("links %s", dep)
			}
		}
		if own, ok := strings.CutPrefix(dep, module); ok {
			for _, party := range []string{"shim", "guestpull", "owner"} {
				if own == party || strings.HasPrefix(own, party+"/") {
					t.Errorf("imports another party: %s", dep)
				}
			}
		}
	}
}
