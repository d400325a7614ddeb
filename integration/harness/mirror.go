package harness

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/coffer-project/coffer/proto/initdata"
)

// mirrorDocument is the file with what guests are told of the mirror.
const mirrorDocument = "mirror-initdata.toml"

// Mirror is one server inside the node's network that answers, by plain http, for registries on the internet, so that
// images keep their original names.
type Mirror struct {
	Handler http.Handler
	// Registries are the hosts that guests ask the mirror for. The host asks it for every registry it has no own
	// settings for.
	Registries []string
}

// startMirror starts the mirror, if there is one, and writes what containerd and guests must know of it.
func (n *Node) startMirror() error {
	if n.options.Mirror == nil {
		return nil
	}
	listener, err := n.Listen()
	if err != nil {
		return err
	}
	n.mirror = serve(listener, n.options.Mirror.Handler)

	dir := filepath.Join(n.path("hosts"), "_default")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	hosts := fmt.Sprintf("server = %q\n", "http://"+n.mirror.Host)
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(hosts), 0o600); err != nil {
		return err
	}

	var cdh strings.Builder
	for _, registry := range n.options.Mirror.Registries {
		fmt.Fprintf(&cdh, "[[image.registry_config.registry]]\nprefix = %q\nlocation = %q\ninsecure = true\n", registry, n.mirror.Host)
	}
	document := initdata.Document{
		Version: "0.1.0", Algorithm: "sha384", Data: map[string]string{initdata.KeyCDH: cdh.String(), initdata.KeyCoffer: "[policy]\ndefault = \"development\"\n"},
	}
	raw, err := document.Encode()
	if err != nil {
		return fmt.Errorf("write the initdata of the node's pods: %w", err)
	}
	return os.WriteFile(n.path(mirrorDocument), raw, 0o600)
}
