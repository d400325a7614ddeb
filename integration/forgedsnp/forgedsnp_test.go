package forgedsnp

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/guestpull/attest"
	"github.com/coffer-project/coffer/owner/appraise"
	"github.com/coffer-project/coffer/owner/appraise/snp"
	"github.com/coffer-project/coffer/owner/measure"
)

// start plays a host whose guest has a kernel and an initrd in dir.
func start(t *testing.T) (*Host, string) {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "cff") //nolint:usetesting // sockets need short paths
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	for name, content := range map[string]string{"kernel": "a kernel", "initrd": "070701" + strings.Repeat("0", 104) + "rest"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	h, err := Start(dir, "/bin/false")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h, dir
}

// boot has a VM launched with these arguments, as the launcher does, and returns its platform with the arguments for QEMU.
func boot(t *testing.T, h *Host, args ...string) (attest.Platform, launched) {
	t.Helper()
	conn, err := net.Dial("unix", h.listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	question, err := json.Marshal(launch{Args: args, FD: 9})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(append(question, '\n')); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(conn).ReadBytes('\n')
	if err != nil {
		t.Fatal(err)
	}
	var answer launched
	if err := json.Unmarshal(line, &answer); err != nil {
		t.Fatal(err)
	}
	return attest.NewForged(conn), answer
}

// What the host measures is what the owner computes; the guest's evidence is that of an SNP guest in all but its roots.
func TestLaunch(t *testing.T) {
	h, dir := start(t)
	kernel, initrd := filepath.Join(dir, "kernel"), filepath.Join(dir, "initrd")
	digest := strings.Repeat("ab", 48)
	guest, answer := boot(t, h, "-smp", "2,sockets=1", "-kernel", kernel, "-initrd", initrd, "-append", "quiet coffer.initdata_digest=sha384:"+digest+" last")
	if answer.Error != "" || !slices.Contains(answer.Args, "quiet last") || !slices.Contains(answer.Args, "socket,id=forged,fd=9") {
		t.Fatalf("%+v", answer)
	}
	field, err := guest.InitDataField(t.Context())
	if err != nil || hex.EncodeToString(field) != digest[:64] {
		t.Errorf("HOST_DATA %x, %v", field, err)
	}
	reportData := bytes.Repeat([]byte{7}, 64)
	raw, err := guest.Evidence(t.Context(), reportData)
	if err != nil {
		t.Fatal(err)
	}
	trusted := owned(t, h, kernel, initrd, "quiet last", 2)
	if result := verify(t, h, trusted, raw, reportData); result.Claims["measurement"] != trusted || result.Status != appraise.Affirming {
		t.Errorf("measured %v and found %s, want %s", result.Claims["measurement"], result.Status, trusted)
	}

	if err := ChangeByte(initrd, initrd); err != nil {
		t.Fatal(err)
	}
	guest, _ = boot(t, h, "-smp", "2", "-kernel", kernel, "-initrd", initrd, "-append", "quiet last")
	if raw, err = guest.Evidence(t.Context(), reportData); err != nil {
		t.Fatal(err)
	}
	if changed := verify(t, h, trusted, raw, reportData); changed.Status == appraise.Affirming || changed.Claims["measurement"] == trusted {
		t.Errorf("with a byte changed: %+v", changed)
	}
}

// owned is the owner's own measurement.
func owned(t *testing.T, h *Host, kernel, initrd, line string, vcpus int) string {
	t.Helper()
	g := measure.SNPGuest{Cmdline: line, VCPUs: vcpus, Features: measure.SNPActive}
	for name, into := range map[string]*[]byte{kernel: &g.Kernel, initrd: &g.Initrd, h.Firmware: &g.Firmware} {
		content, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		*into = content
	}
	var err error
	if g.CPU, err = measure.CPUSignature(CPU); err != nil {
		t.Fatal(err)
	}
	sum, err := g.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(sum)
}

// verify appraises evidence by the host's roots and firmware versions, and by the measurement that the owner trusts.
func verify(t *testing.T, h *Host, trusted string, raw, reportData []byte) *appraise.Result {
	t.Helper()
	pem, err := os.ReadFile(h.Roots)
	if err != nil {
		t.Fatal(err)
	}
	roots, err := snp.ParseRoots(pem)
	if err != nil {
		t.Fatal(err)
	}
	values := appraise.Values{appraise.RefSNPMeasurement: trusted}
	for name, version := range h.Values() {
		values[name] = float64(version)
	}
	verifier, err := snp.New(snp.Options{TestRoots: roots, References: values})
	if err != nil {
		t.Fatal(err)
	}
	result, err := verifier.Verify(t.Context(), appraise.Evidence{Raw: raw, ReportData: reportData})
	if err != nil {
		t.Fatal(err)
	}
	return result
}

// What cannot be measured is not launched.
func TestLaunchRefused(t *testing.T) {
	h, dir := start(t)
	kernel, initrd := filepath.Join(dir, "kernel"), filepath.Join(dir, "initrd")
	for name, args := range map[string][]string{
		"no command line": {"-smp", "1", "-kernel", kernel, "-initrd", initrd},
		"no initrd there": {"-smp", "1", "-kernel", kernel, "-initrd", initrd + "x", "-append", "quiet"},
		"no processors":   {"-smp", "none", "-kernel", kernel, "-initrd", initrd, "-append", "quiet"},
		"bad digest":      {"-smp", "1", "-kernel", kernel, "-initrd", initrd, "-append", paramInitdata + "sha384:xy"},
	} {
		guest, answer := boot(t, h, args...)
		if answer.Error == "" || len(answer.Args) > 0 {
			t.Errorf("%s: %+v", name, answer)
		}
		if _, err := guest.Evidence(t.Context(), nil); err == nil {
			t.Errorf("%s: there is evidence", name)
		}
	}
}
