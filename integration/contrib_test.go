package integration

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/integration/harness"
	"github.com/coffer-project/coffer/integration/require"
	"github.com/coffer-project/coffer/node/doctor"
	"github.com/coffer-project/coffer/shim/config"
)

// TestContribContainerd: the real containerd reads each drop-in, and doctor finds the main one complete, alone and with that of
// node-default mode.
func TestContribContainerd(t *testing.T) {
	t.Parallel()
	tools, err := harness.FindTools()
	if err != nil {
		require.Missing(t, err.Error())
	}
	dropIns, err := filepath.Glob("../contrib/containerd/*.toml")
	if err != nil || len(dropIns) < 2 {
		t.Fatalf("drop-ins: %q, %v", dropIns, err)
	}
	for _, dropIn := range dropIns {
		t.Run(filepath.Base(dropIn), func(t *testing.T) {
			config := mainConfig(t, dropIn)
			if out, err := exec.CommandContext(t.Context(), tools.Containerd, "--config", config, "config", "dump").CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
			if filepath.Base(dropIn) == "coffer.toml" {
				checkComplete(t, tools, config, "")
			}
		})
	}
	t.Run("node-default mode", func(t *testing.T) {
		config := mainConfig(t, "../contrib/containerd/coffer.toml", "../contrib/containerd/coffer-node-default.toml")
		checkComplete(t, tools, config, "[node_default]\naddress = \"/run/coffer-snapshotter/default.sock\"\n")
	})
}

// mainConfig is a configuration of containerd's that imports drop-ins. The file that they name is put where tests may write.
func mainConfig(t *testing.T, dropIns ...string) string {
	t.Helper()
	dir := t.TempDir()
	shim := filepath.Join(dir, "shim.toml")
	files := map[string]string{shim: "", filepath.Join(dir, "config.toml"): "version = 3\nimports = [\"" + filepath.Join(dir, "conf.d", "*.toml") + "\"]\n"}
	if err := os.Mkdir(filepath.Join(dir, "conf.d"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, dropIn := range dropIns {
		text, err := os.ReadFile(dropIn)
		if err != nil {
			t.Fatal(err)
		}
		files[filepath.Join(dir, "conf.d", filepath.Base(dropIn))] = strings.ReplaceAll(string(text), "/etc/coffer/shim.toml", shim)
	}
	for path, content := range files {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "config.toml")
}

// checkComplete asks doctor, whose other checks do not matter here. snapshotter is the text of that configuration.
func checkComplete(t *testing.T, tools harness.Tools, config, snapshotter string) {
	t.Helper()
	checks := []string{"containerd snapshotter", "containerd handlers", "containerd unpacking"}
	tool := filepath.Join(tools.BuildBin, "coffer-node")
	if _, err := os.Stat(tool); err != nil {
		require.Missing(t, err.Error()+": run make build")
	}
	path := filepath.Join(t.TempDir(), "snapshotter.toml")
	if err := os.WriteFile(path, []byte(snapshotter), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), tool, "doctor", "--json", "--containerd-config", config, "--snapshotter-config", path)
	cmd.Env = append(os.Environ(), "PATH="+tools.BuildBin+":"+tools.CacheBin+":"+os.Getenv("PATH"))
	out, _ := cmd.Output() // it fails where the machine is no node
	var findings []doctor.Finding
	if err := json.Unmarshal(out, &findings); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	good := 0
	for _, f := range findings {
		if !slices.Contains(checks, f.Check) {
			continue
		}
		if f.Status != doctor.OK {
			t.Errorf("%+v", f)
		}
		good++
	}
	if good < len(checks) {
		t.Errorf("doctor did not look:\n%s", out)
	}
}

// TestContribUnits: systemd reads the units without a complaint.
func TestContribUnits(t *testing.T) {
	t.Parallel()
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("systemd-analyze is not installed here, and nothing else reads units")
	}
	units, err := filepath.Glob("../contrib/systemd/*.service")
	if err != nil || len(units) < 2 {
		t.Fatalf("units: %q, %v", units, err)
	}
	for _, unit := range units {
		t.Run(filepath.Base(unit), func(t *testing.T) {
			text, err := os.ReadFile(unit)
			if err != nil {
				t.Fatal(err)
			}
			// The programs are not installed here, and that they must be is all that may be wrong.
			path := filepath.Join(t.TempDir(), filepath.Base(unit))
			if err := os.WriteFile(path, []byte(strings.ReplaceAll(string(text), "/usr/local/bin/coffer-", "/bin/true coffer-")), 0o600); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.CommandContext(t.Context(), analyze, "verify", path).CombinedOutput(); err != nil || len(out) > 0 {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

// TestContribConfidential: each RuntimeClass has its handler, and each handler a configuration by a preset of that name.
func TestContribConfidential(t *testing.T) {
	t.Parallel()
	handlers, err := os.ReadFile("../contrib/containerd/coffer-confidential.toml")
	if err != nil {
		t.Fatal(err)
	}
	classes, err := os.ReadFile("../contrib/kubernetes/runtimeclass-confidential.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, preset := range config.Presets() {
		if preset == "plain" {
			continue // coffer.toml's
		}
		if text := ".runtimes.coffer-" + preset + "]"; !strings.Contains(string(handlers), text) {
			t.Errorf("no %s", text)
		}
		if text := "ConfigPath = \"/etc/coffer/" + preset + ".toml\""; !strings.Contains(string(handlers), text) {
			t.Errorf("no %s", text)
		}
		if text := "name: coffer-" + preset + "\nhandler: coffer-" + preset + "\n"; !strings.Contains(string(classes), text) {
			t.Errorf("no RuntimeClass %s", text)
		}
	}
}
