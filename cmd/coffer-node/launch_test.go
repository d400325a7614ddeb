package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLaunch(t *testing.T) {
	config := filepath.Join(t.TempDir(), "shim.toml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("preset = \"snp\"\n[hypervisor]\nkernel_params = [\"a='b'\"]\n")
	text, err := run(t, "launch", "--config", config, "--vcpus", "1,4", "--scratch")
	want := `cofferctl measure snp --firmware '/opt/kata/share/ovmf/AMDSEV.fd' --kernel '/usr/share/coffer/guest/vmlinuz' --initrd '/usr/share/coffer/guest/initrd.cpio' ` +
		`--cmdline 'console=ttyS0 quiet panic=-1 a='\''b'\'' agent.log=info coffer.scratch=encrypted' --cpu 'EPYC-v4' --vcpus 1,4`
	if err != nil || !strings.Contains(text, want) {
		t.Errorf("got %v\n%s\nwant %s", err, text, want)
	}
	write("preset = \"gpu-tdx\"\n")
	text, err = run(t, "launch", "--config", config, "--json")
	var l launched
	if err != nil || json.Unmarshal([]byte(text), &l) != nil || l.TEE != "tdx" || l.CPU != "host" || !strings.HasPrefix(l.Measure, "cofferctl measure tdx ") {
		t.Errorf("got %+v, %v", l, err)
	}
	for name, tc := range map[string]struct {
		text string
		args []string
		want string
	}{
		"no TEE":         {"", nil, "nothing is measured"},
		"host's model":   {"preset = \"snp\"\n[hypervisor]\ncpu_model = \"host\"\n", nil, "name a model"},
		"too many vcpus": {"preset = \"snp\"\n", []string{"--vcpus", "33"}, "max_vcpus"},
	} {
		write(tc.text)
		if _, err := run(t, append([]string{"launch", "--config", config}, tc.args...)...); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestConfigPreset(t *testing.T) {
	if text, err := run(t, "config", "preset", "gpu-snp"); err != nil || !strings.Contains(text, `tee = "snp"`) || !strings.Contains(text, "numa") {
		t.Errorf("got %q, %v", text, err)
	}
	if _, err := run(t, "config", "preset", "sgx"); err == nil || !strings.Contains(err.Error(), "gpu-tdx") {
		t.Errorf("unknown: %v", err)
	}
}
