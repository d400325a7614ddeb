package main

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/containerd/errdefs"
	"github.com/urfave/cli/v2"

	shim "github.com/coffer-project/coffer/shim/config"
	"github.com/coffer-project/coffer/shim/plugin/driver"
)

// launched is what a TEE measures of the pods of one configuration.
type launched struct {
	TEE      string `json:"tee"`
	Firmware string `json:"firmware"`
	Kernel   string `json:"kernel"`
	Initrd   string `json:"initrd"`
	Cmdline  string `json:"cmdline"`
	CPU      string `json:"cpu"`
	VCPUs    []int  `json:"vcpus"`
	// Measure is the command by which the owner computes the measurements.
	Measure string `json:"measure"`
}

func launchCommand() *cli.Command {
	return &cli.Command{
		Name:  "launch",
		Usage: "show what a TEE measures of a configuration's pods, and the command that computes the measurements from it",
		Description: "An owner runs this with the node's configuration and the same guest image and firmware; it asks nothing of the machine.\n" +
			"The initdata document is not part of it: reports carry its digest, see `cofferctl initdata digest`.",
		Flags: []cli.Flag{
			shimFlag,
			&cli.IntSliceFlag{Name: "vcpus", Usage: "`NUMBERS` of processors that pods may have, separated by commas; without it hypervisor.default_vcpus"},
			&cli.BoolFlag{Name: "scratch", Usage: "pods have a scratch disk; without it as scratch.default_mib says"},
			&cli.BoolFlag{Name: "json", Usage: "write JSON"},
		},
		Action: func(c *cli.Context) error {
			conf, err := shim.Load(c.String("config"))
			if err != nil {
				return err
			}
			l, err := describe(conf, c.IntSlice("vcpus"), c.Bool("scratch"))
			if err != nil {
				return err
			}
			if c.Bool("json") {
				return writeJSON(c, l)
			}
			return l.write(c.App.Writer)
		},
	}
}

func describe(c *shim.Config, vcpus []int, scratch bool) (*launched, error) {
	if c.TEE == shim.TEENone {
		return nil, fmt.Errorf("tee is none, and nothing is measured: name a configuration of confidential pods by --config: %w", errdefs.ErrFailedPrecondition)
	}
	if len(vcpus) == 0 {
		vcpus = []int{int(c.Hypervisor.DefaultVCPUs)}
	}
	if slices.Min(vcpus) < 1 || slices.Max(vcpus) > int(c.Hypervisor.MaxVCPUs) {
		return nil, fmt.Errorf("--vcpus must be between 1 and hypervisor.max_vcpus (%d): %w", c.Hypervisor.MaxVCPUs, errdefs.ErrInvalidArgument)
	}
	d, err := driver.Describe(c, uint32(vcpus[0]), scratch || c.Scratch.DefaultMiB > 0)
	if err != nil {
		return nil, err
	}
	h := &c.Hypervisor
	l := &launched{
		TEE: string(c.TEE), Firmware: h.Firmware, Kernel: h.Kernel, Initrd: h.Initrd, Cmdline: d.KernelLine, CPU: d.CPU, VCPUs: vcpus,
	}
	l.Measure, err = l.measure()
	return l, err
}

// measure is a line for a shell.
func (l *launched) measure() (string, error) {
	if l.TEE == string(shim.TEETDX) {
		// MRTD covers the firmware; what it loads is in the runtime registers, of which a guest's event log tells.
		return "cofferctl measure tdx --firmware " + quoted(l.Firmware), nil
	}
	model, _, _ := strings.Cut(l.CPU, ",")
	if model == "host" {
		return "", fmt.Errorf("hypervisor.cpu_model is that of each host, on which the launch digest depends: name a model, such as EPYC-v4: %w", errdefs.ErrFailedPrecondition)
	}
	words := []string{"cofferctl measure snp --firmware", quoted(l.Firmware), "--kernel", quoted(l.Kernel)}
	if l.Initrd != "" {
		words = append(words, "--initrd", quoted(l.Initrd))
	}
	numbers := make([]string, len(l.VCPUs))
	for i, n := range l.VCPUs {
		numbers[i] = strconv.Itoa(n)
	}
	return strings.Join(append(words, "--cmdline", quoted(l.Cmdline), "--cpu", quoted(model), "--vcpus", strings.Join(numbers, ",")), " "), nil
}

// quoted makes text one word of a shell's.
func quoted(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }

func (l *launched) write(w io.Writer) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range [][2]string{
		{"TEE", l.TEE}, {"firmware", l.Firmware}, {"kernel", l.Kernel}, {"initrd", l.Initrd}, {"command line", l.Cmdline}, {"processor", l.CPU},
	} {
		fmt.Fprintf(table, "%s\t%s\n", row[0], row[1])
	}
	if err := table.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\nMeasurements:\n  %s\n", l.Measure)
	return err
}
