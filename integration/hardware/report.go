package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
)

// Outcomes of a row.
const (
	proved = "proved"
	failed = "FAILED"
	// lacking says that this machine lacks what the row needs.
	lacking = "not here"
)

// row is one row of docs/hardware.md.
type row struct {
	ID      string `json:"id"`
	Claim   string `json:"claim"`
	Outcome string `json:"outcome"`
	Detail  string `json:"detail"`
}

type report struct {
	Machine map[string]string `json:"machine"`
	Rows    []row             `json:"rows"`
}

// describeMachine names what a reader must know to believe the rows. What cannot be found out is left out.
func describeMachine(ctx context.Context) map[string]string {
	m := map[string]string{"processors": fmt.Sprint(runtime.NumCPU())}
	for name, command := range map[string][]string{
		"kernel": {"uname", "-sr"}, "qemu": {"qemu-system-x86_64", "--version"},
	} {
		if out, err := exec.CommandContext(ctx, command[0], command[1:]...).Output(); err == nil {
			m[name], _, _ = strings.Cut(strings.TrimSpace(string(out)), "\n")
		}
	}
	for name, path := range map[string]string{
		"kvm_amd.sev_snp": "/sys/module/kvm_amd/parameters/sev_snp", "kvm_intel.tdx": "/sys/module/kvm_intel/parameters/tdx",
		"guests with keys of their own": "/sys/fs/cgroup/misc.capacity",
	} {
		if raw, err := os.ReadFile(path); err == nil {
			m[name] = strings.Join(strings.Fields(string(raw)), " ")
		}
	}
	if raw, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		_, rest, _ := strings.Cut(string(raw), "model name\t: ")
		m["model"], _, _ = strings.Cut(rest, "\n")
	}
	return m
}

func (r report) markdown() string {
	var text strings.Builder
	text.WriteString("# Hardware check\n\n")
	for _, name := range []string{"model", "processors", "kernel", "qemu", "kvm_amd.sev_snp", "kvm_intel.tdx", "guests with keys of their own"} {
		if value := r.Machine[name]; value != "" {
			fmt.Fprintf(&text, "* %s: %s\n", name, value)
		}
	}
	text.WriteString("\n| row | claim | outcome | detail |\n|---|---|---|---|\n")
	for _, row := range r.Rows {
		detail := strings.NewReplacer("|", "\\|", "\n", " ").Replace(row.Detail)
		fmt.Fprintf(&text, "| %s | %s | %s | %s |\n", row.ID, row.Claim, row.Outcome, detail)
	}
	return text.String()
}
