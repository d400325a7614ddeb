package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// phases are the steps of a cold start in the order in which they happen. Those from fetch to publish overlap: layers
// stream through them, and each figure is the time spent in that step alone, summed over the layers.
var phases = []string{
	"vm_boot", "agent_ready", "attest", "resolve", "verify", "fetch", "decrypt", "decompress", "apply", "publish", "start", "total",
}

// counts are registry requests by kind.
type counts struct {
	Manifest int `json:"manifest"`
	Config   int `json:"config"`
	Layer    int `json:"layer"`
}

// run is one encrypted image run in a VM.
type run struct {
	Registry     string             `json:"registry"`
	Image        string             `json:"image"`
	ImageDigest  string             `json:"image_digest"`
	PhasesMillis map[string]float64 `json:"phases_ms"`
	// GuestBoot is the guest's own account: "kernel" until PID 1 runs, "ready" from there until it serves, and the
	// steps of the latter.
	GuestBoot        map[string]float64 `json:"guest_boot_ms"`
	RegistryRequests map[string]counts  `json:"registry_requests"`
	PlaintextOnHost  int                `json:"plaintext_on_host"`
	PlaintextFiles   []string           `json:"plaintext_files,omitempty"`
	ContainerOutput  string             `json:"container_output"`
	KeyReleasedTo    *release           `json:"key_released_to"`

	expected string
}

// report is what the demo writes. The first run's fields stand at the top level, so that simple readers need no list.
type report struct {
	run
	Runs []run `json:"runs"`
	// SearchControl is in how many files the same search found the marker after runc had run the unencrypted image.
	SearchControl int      `json:"plaintext_search_control"`
	OwnOutput     string   `json:"own_image_output,omitempty"`
	Machine       machine  `json:"machine"`
	Notes         []string `json:"notes"`
}

// notes are what a reader of the figures must know.
var notes = []string{
	"fetch to publish overlap: layers stream through them, and each figure is the time in that step alone, summed over the layers",
	"the accelerator tcg emulates the processor: compare structure, not seconds, with hardware",
	"the SNP processor is forged: this demo measures what QEMU is given and signs that with a key of its own; a broker that is not told to (insecure_snp_test_roots_file) refuses it",
	"the guest's layers include the signature's payload, which is a layer in the registry",
	"the search covers every file of containerd, snapshotter, shim, logs and what QEMU was given, not the VM's memory, which only a TEE protects",
}

// machine says where the figures come from.
type machine struct {
	CPUs        int    `json:"cpus"`
	CPU         string `json:"cpu"`
	Kernel      string `json:"kernel"`
	QEMU        string `json:"qemu"`
	Accelerator string `json:"accelerator"`
	ShimRSSMiB  int    `json:"shim_rss_mib"`
	// GuestMiB is the guest image without its kernel.
	GuestMiB int `json:"guest_image_mib"`
}

// verdict lists everything that contradicts what the demo is to show.
func (r *report) verdict() []string {
	var faults []string
	for _, run := range r.Runs {
		if !strings.Contains(run.ContainerOutput, run.expected) {
			faults = append(faults, fmt.Sprintf("%s: the container did not print the marker's hash", run.Registry))
		}
		if n := run.RegistryRequests["host"].Layer; n != 0 {
			faults = append(faults, fmt.Sprintf("%s: the host fetched %d layers", run.Registry, n))
		}
		if run.RegistryRequests["guest"].Layer == 0 {
			faults = append(faults, fmt.Sprintf("%s: the guest fetched no layer", run.Registry))
		}
		if run.PlaintextOnHost != 0 {
			faults = append(faults, fmt.Sprintf("%s: the marker lies in %d files of the host: %s",
				run.Registry, run.PlaintextOnHost, strings.Join(run.PlaintextFiles, ", ")))
		}
		for _, fault := range run.KeyReleasedTo.faults() {
			faults = append(faults, run.Registry+": "+fault)
		}
	}
	if r.SearchControl == 0 {
		faults = append(faults, "the search did not find the marker after runc ran the unencrypted image, so it proves nothing")
	}
	return faults
}

func (r *report) print(out io.Writer) {
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	row := func(name string, value func(run) string) {
		fmt.Fprint(table, name)
		for _, run := range r.Runs {
			fmt.Fprint(table, "\t", value(run))
		}
		fmt.Fprintln(table)
	}
	fmt.Fprintln(out)
	row("registry", func(run run) string { return run.Registry })
	row("image digest", func(run run) string { return abbreviate(run.ImageDigest) })
	for _, phase := range phases {
		row(phase+" ms", func(run run) string { return fmt.Sprintf("%.1f", run.PhasesMillis[phase]) })
	}
	row("guest start ms", func(run run) string { return fmt.Sprintf("%.1f", run.GuestBoot["ready"]) })
	for _, party := range []string{"host", "guest"} {
		row(party+" requests", func(run run) string {
			c := run.RegistryRequests[party]
			return fmt.Sprintf("%d manifest, %d config, %d layer", c.Manifest, c.Config, c.Layer)
		})
	}
	row("marker on host", func(run run) string { return fmt.Sprintf("%d files", run.PlaintextOnHost) })
	row("output", func(run run) string { return abbreviate(strings.TrimSpace(run.ContainerOutput)) })
	_ = table.Flush()
	r.Runs[0].KeyReleasedTo.print(out)
	fmt.Fprintf(out, "\nthe same search after runc ran the unencrypted image: %d files\n", r.SearchControl)
	fmt.Fprintf(out, "machine: %d CPUs (%s), %s, accelerator %s; shim %d MiB resident, guest image %d MiB\n",
		r.Machine.CPUs, r.Machine.CPU, r.Machine.QEMU, r.Machine.Accelerator, r.Machine.ShimRSSMiB, r.Machine.GuestMiB)
}

func abbreviate(s string) string {
	if len(s) > 40 {
		return s[:40] + "…"
	}
	return s
}
