package snapshotter

import (
	"encoding/json"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/proto/volume"
)

// TestNydusReadsOurVolume gives a mount of ours to nydus-snapshotter's own parser, which Kata's Go shim links.
//
// Importing its package would bring Kubernetes' client into our module, so the test takes the declarations of the
// document out of the module's source and compiles them by themselves.
func TestNydusReadsOurVolume(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: compiles nydus-snapshotter's parser")
	}
	s := open(t, t.TempDir(), WithPlatform("linux/amd64"))
	name := pull(t, s, layerOf{chain: chainA.String(), image: app})
	mounts := prepare(t, s, "c", name)
	option, found := strings.CutPrefix(mounts[0].Options[2], volume.OptionPrefix)
	if !found {
		t.Fatalf("option is %q", mounts[0].Options[2])
	}
	cmd := exec.CommandContext(t.Context(), "go", "run", nydusParser(t), option)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("nydus-snapshotter refuses the volume: %v", err)
	}
	var got struct {
		VolumeType string `json:"volume_type"`
		Source     string `json:"source"`
		ImagePull  struct {
			Metadata map[string]string `json:"metadata"`
		} `json:"image_pull"`
	}
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatalf("%v in %q", err, out)
	}
	if got.VolumeType != "image_guest_pull" || got.Source != app ||
		got.ImagePull.Metadata["containerd.io/snapshot/cri.layer-digest"] != blobOf(chainA.String()) ||
		got.ImagePull.Metadata["containerd.io/snapshot/nydus-proxy-mode"] != "true" {
		t.Fatalf("nydus-snapshotter reads %+v", got)
	}
}

// nydusParser writes a program of nydus-snapshotter's declarations that parses its argument and prints it as JSON.
func nydusParser(t *testing.T) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "github.com/containerd/nydus-snapshotter").Output()
	dir := strings.TrimSpace(string(out))
	if err != nil || dir == "" {
		t.Fatalf("find nydus-snapshotter in the module cache (go mod download fills it): %v", err)
	}
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, filepath.Join(dir, "snapshot", "mount_option.go"), nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	program := &strings.Builder{}
	program.WriteString("package main\nimport (\"encoding/base64\"; \"encoding/hex\"; \"encoding/json\"; \"fmt\"; \"os\"; \"strings\"; \"github.com/containerd/log\"; \"github.com/pkg/errors\")\n")
	for _, decl := range file.Decls {
		if !standsAlone(decl) {
			continue
		}
		if err := format.Node(program, fset, decl); err != nil {
			t.Fatal(err)
		}
		program.WriteString("\n")
	}
	program.WriteString(`func main() {
	v, err := ParseKataVirtualVolumeFromBase64(os.Args[1])
	if err == nil && !v.Validate() { err = errors.New("volume is not valid") }
	if err != nil { fmt.Fprintln(os.Stderr, err); os.Exit(1) }
	_ = json.NewEncoder(os.Stdout).Encode(v)
}
var _, _, _, _ = base64.StdEncoding, hex.EncodeToString, strings.Cut, log.L
`)
	path := filepath.Join(t.TempDir(), "main.go")
	if err := os.WriteFile(path, []byte(program.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// standsAlone leaves out imports, and methods of the snapshotter, which name its other packages.
func standsAlone(decl ast.Decl) bool {
	switch d := decl.(type) {
	case *ast.GenDecl:
		return d.Tok != token.IMPORT
	case *ast.FuncDecl:
		if d.Recv == nil {
			return d.Name.Name != "parseTarfsDmVerityInfo"
		}
		star, ok := d.Recv.List[0].Type.(*ast.StarExpr)
		return ok && star.X.(*ast.Ident).Name != "snapshotter"
	}
	return false
}
