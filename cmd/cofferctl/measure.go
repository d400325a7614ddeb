package main

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/containerd/errdefs"
	"github.com/urfave/cli/v2"

	"github.com/coffer-project/coffer/owner/appraise"
	"github.com/coffer-project/coffer/owner/guestimage"
	"github.com/coffer-project/coffer/owner/measure"
	"github.com/coffer-project/coffer/owner/measure/eventlog"
)

func measureCommand() *cli.Command {
	common := []cli.Flag{
		&cli.PathFlag{Name: "firmware", Required: true, Usage: "OVMF `FILE` that the guest starts with"},
		&cli.StringSliceFlag{Name: "value", Usage: "add a reference value, `NAME=VALUE`, such as snp_bootloader=10; may be repeated"},
		&cli.PathFlag{Name: "out", Usage: "write the reference values to `FILE`"},
		&cli.BoolFlag{Name: "rvps", Usage: "write them as a message to Trustee's reference value provider"},
	}
	return &cli.Command{
		Name:  "measure",
		Usage: "compute what a genuine TEE will say about a guest, as reference values for a key broker",
		Subcommands: []*cli.Command{
			{
				Name:  "snp",
				Usage: "launch digests of SEV-SNP, one for each number of processors and each model",
				Flags: append([]cli.Flag{
					&cli.PathFlag{Name: "guest", Usage: "take kernel and initrd from a guest image, `DIR`"},
					&cli.PathFlag{Name: "kernel", Usage: "kernel `FILE` (bzImage)"},
					&cli.PathFlag{Name: "initrd", Usage: "initrd `FILE`"},
					&cli.StringFlag{Name: "cmdline", Usage: "kernel command line, exactly as the guest is launched with it"},
					&cli.IntSliceFlag{Name: "vcpus", Value: cli.NewIntSlice(1), Usage: "`NUMBERS` of processors, separated by commas"},
					&cli.StringSliceFlag{
						Name: "cpu", Required: true,
						Usage: "processor `MODELS` by QEMU's names (" + strings.Join(measure.CPUModels(), ", ") + ") or CPUID signatures, separated by commas",
					},
					&cli.BoolFlag{Name: "debug-swap", Usage: "for hosts with SNP patches from before Linux 6.11 that turn debug-swap on"},
				}, common...),
				Action: measureSNP,
			},
			{
				Name:  "tdx",
				Usage: "measurement of a TDX firmware, and runtime registers from an event log",
				Flags: append([]cli.Flag{
					&cli.PathFlag{Name: "event-log", Usage: "event log `FILE` of a guest that you trust (/sys/firmware/acpi/tables/data/CCEL)"},
				}, common...),
				Action: measureTDX,
			},
		},
	}
}

func measureSNP(c *cli.Context) error {
	guest := measure.SNPGuest{Features: measure.SNPActive, Cmdline: c.String("cmdline")}
	if c.Bool("debug-swap") {
		guest.Features |= measure.DebugSwap
	}
	if err := readGuest(c, &guest); err != nil {
		return err
	}
	table := newTable(c.App.Writer, "CPU", "VCPUS", "LAUNCH DIGEST")
	var digests []any
	for _, model := range c.StringSlice("cpu") {
		var err error
		if guest.CPU, err = measure.CPUSignature(model); err != nil {
			return err
		}
		for _, guest.VCPUs = range c.IntSlice("vcpus") {
			digest, err := guest.Digest()
			if err != nil {
				return err
			}
			digests = append(digests, hex.EncodeToString(digest))
			table.row(model, strconv.Itoa(guest.VCPUs), hex.EncodeToString(digest))
		}
	}
	return finishMeasure(c, table, appraise.Values{appraise.RefSNPMeasurement: digests})
}

// readGuest reads the files that the guest is launched with.
func readGuest(c *cli.Context, guest *measure.SNPGuest) error {
	kernel, initrd := c.Path("kernel"), c.Path("initrd")
	if dir := c.Path("guest"); dir != "" {
		if kernel != "" || initrd != "" {
			return fmt.Errorf("--guest names a kernel and an initrd already: leave out --kernel and --initrd: %w", errdefs.ErrInvalidArgument)
		}
		if _, err := guestimage.Inspect(c.Context, dir); err != nil {
			return err
		}
		kernel, initrd = filepath.Join(dir, guestimage.VmlinuzName), filepath.Join(dir, guestimage.InitrdName)
	}
	for _, file := range []struct {
		name string
		into *[]byte
	}{{c.Path("firmware"), &guest.Firmware}, {kernel, &guest.Kernel}, {initrd, &guest.Initrd}} {
		if file.name == "" {
			continue
		}
		raw, err := os.ReadFile(file.name)
		if err != nil {
			return fmt.Errorf("read a part of the guest: %w", err)
		}
		*file.into = raw
	}
	return nil
}

func measureTDX(c *cli.Context) error {
	firmware, err := os.ReadFile(c.Path("firmware"))
	if err != nil {
		return fmt.Errorf("read firmware: %w", err)
	}
	table := newTable(c.App.Writer, "REGISTER", "HOST", "MEASUREMENT")
	values := appraise.Values{}
	var mrtds []any
	for _, host := range []struct {
		name  string
		order measure.PageOrder
	}{{"Linux 6.16 and later", measure.PageByPage}, {"earlier patches", measure.SectionBySection}} {
		mrtd, err := measure.MRTD(firmware, host.order)
		if err != nil {
			return err
		}
		mrtds = append(mrtds, hex.EncodeToString(mrtd))
		table.row("MRTD", host.name, hex.EncodeToString(mrtd))
	}
	values[appraise.RefTDXMRTD] = mrtds
	if name := c.Path("event-log"); name != "" {
		raw, err := os.ReadFile(name)
		if err != nil {
			return fmt.Errorf("read event log: %w", err)
		}
		log, err := eventlog.Parse(raw)
		if err != nil {
			return err
		}
		registers := log.Replay()
		for i, reference := range []string{appraise.RefTDXRTMR0, appraise.RefTDXRTMR1, appraise.RefTDXRTMR2} {
			values[reference] = []any{hex.EncodeToString(registers[i][:])}
			table.row(fmt.Sprintf("RTMR%d", i), "any", hex.EncodeToString(registers[i][:]))
		}
	}
	return finishMeasure(c, table, values)
}

// finishMeasure shows the table and writes the values where that was asked for.
func finishMeasure(c *cli.Context, table *measureTable, values appraise.Values) error {
	if c.Args().Present() {
		return fmt.Errorf("measure takes no arguments, got %q: %w", c.Args().First(), errdefs.ErrInvalidArgument)
	}
	if err := addValues(values, c.StringSlice("value")); err != nil {
		return err
	}
	if err := table.Flush(); err != nil {
		return err
	}
	out := c.Path("out")
	if out == "" {
		return nil
	}
	var encoded []byte
	var err error
	if c.Bool("rvps") {
		encoded, err = values.Message()
	} else {
		encoded, err = json.MarshalIndent(values, "", "  ")
	}
	if err != nil {
		return fmt.Errorf("encode reference values: %w", err)
	}
	if err := os.WriteFile(out, append(encoded, '\n'), 0o644); err != nil {
		return fmt.Errorf("write reference values: %w", err)
	}
	return nil
}

// addValues reads NAME=VALUE. What looks like a whole number or a boolean is one; a name that comes again gets a list.
func addValues(values appraise.Values, pairs []string) error {
	for _, pair := range pairs {
		name, text, ok := strings.Cut(pair, "=")
		if !ok || name == "" {
			return fmt.Errorf("--value %q is not NAME=VALUE: %w", pair, errdefs.ErrInvalidArgument)
		}
		var value any = text
		if number, err := strconv.ParseUint(text, 10, 32); err == nil {
			value = float64(number)
		} else if text == "true" || text == "false" {
			value = text == "true"
		}
		switch have := values[name].(type) {
		case nil:
			values[name] = value
		case []any:
			values[name] = append(have, value)
		default:
			values[name] = []any{have, value}
		}
	}
	return nil
}

type measureTable struct{ *tabwriter.Writer }

func newTable(w io.Writer, heads ...string) *measureTable {
	t := &measureTable{tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)}
	t.row(heads...)
	return t
}

func (t *measureTable) row(cells ...string) { fmt.Fprintln(t, strings.Join(cells, "\t")) }
