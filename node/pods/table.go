package pods

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/coffer-project/coffer/shim/sandbox"
)

// shortID is how much of an id a table shows, as other tools do.
const shortID = 13

// WriteTable writes pods for people. Pulls under way have lines of their own; orphans come with what to do about them.
func WriteTable(w io.Writer, pods []Pod, now time.Time) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "POD\tSANDBOX\tSTATE\tAGE\tVM PID\tCPU\tMEMORY\tACCEL\tBOOT\tCONTAINERS")
	orphans := 0
	for i := range pods {
		p := &pods[i]
		if p.Orphan {
			orphans++
		}
		report := p.Report
		if report == nil {
			report = new(sandbox.Report)
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", orDash(p.Name()), orDash(p.ID[:min(len(p.ID), shortID)]), p.State(),
			age(p.CreatedAt, now), number(report.VMPID, ""), number(report.VCPUs, ""), number(report.MemoryMiB, " MiB"),
			orDash(report.Accelerator), boot(report), containers(report))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	var text strings.Builder
	for i := range pods {
		pulls(&text, &pods[i])
		if p := &pods[i]; p.Report == nil && !p.Orphan {
			fmt.Fprintf(&text, "%s: %s\n", p.Name(), p.Problem)
		}
	}
	if orphans > 0 {
		fmt.Fprintf(&text, "\n%d orphaned: the shim was killed. Remove the pod through containerd (crictl rmp -f SANDBOX); what containerd\n"+
			"does not know any more is removed by `cofferctl clean`.\n", orphans)
	}
	_, err := io.WriteString(w, text.String())
	return err
}

func pulls(text *strings.Builder, p *Pod) {
	if p.Report == nil {
		return
	}
	for _, id := range slices.Sorted(maps.Keys(p.Report.Containers)) {
		c := p.Report.Containers[id]
		if c.Progress == nil {
			continue
		}
		fmt.Fprintf(text, "%s pulls %s: %s, %d of %d layers, %s of %s\n", p.Name(), c.Image, c.Progress.Phase,
			c.Progress.LayersDone, c.Progress.Layers, mib(c.Progress.Bytes), mib(c.Progress.TotalBytes))
	}
}

func mib(bytes int64) string { return fmt.Sprintf("%.1f MiB", float64(bytes)/(1<<20)) }

// boot is the sum of the start's phases.
func boot(r *sandbox.Report) string {
	var sum time.Duration
	for _, phase := range r.Boot {
		sum += time.Duration(phase.Micros) * time.Microsecond
	}
	if sum == 0 {
		return "-"
	}
	return sum.Round(10 * time.Millisecond).String()
}

// containers counts them by state.
func containers(r *sandbox.Report) string {
	counts := map[string]int{}
	for _, c := range r.Containers {
		counts[c.State]++
	}
	var parts []string
	for _, state := range slices.Sorted(maps.Keys(counts)) {
		parts = append(parts, fmt.Sprintf("%d %s", counts[state], state))
	}
	return orDash(strings.Join(parts, ", "))
}

func age(since, now time.Time) string {
	if since.IsZero() {
		return "-"
	}
	switch d := now.Sub(since); {
	case d < time.Hour:
		return d.Round(time.Second).String()
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%dm", int(d.Hours()), int(d.Minutes())%60)
	default:
		return fmt.Sprintf("%dd", int(d.Hours())/24)
	}
}

func number(n uint32, unit string) string {
	if n == 0 {
		return "-"
	}
	return fmt.Sprint(n, unit)
}

func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}
