// Command hardware tries on this machine what no machine without a TEE can prove, and reports which rows of docs/hardware.md
// that closes. It is what contrib/hardware-check runs. Everything on the way is Coffer's own: the shim boots its guests as it
// boots pods, though without a network, and what they say of their launch is compared with what their owner would compute.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"github.com/urfave/cli/v2"

	"github.com/coffer-project/coffer/integration/cache"
	"github.com/coffer-project/coffer/integration/program"
)

func main() {
	program.Main(&cli.App{
		Name:  "hardware",
		Usage: "try confidential guests on this machine and report what is proved",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "out", Value: "out/hardware", Usage: "folder for hardware.json and hardware.md"},
			&cli.StringFlag{Name: "guest", Usage: "guest image `DIR`; without it that of make guest"},
			&cli.StringFlag{Name: "snp-firmware", Usage: "OVMF `FILE` for SNP (a build of OvmfPkg/AmdSev); without it the preset's"},
			&cli.StringFlag{Name: "tdx-firmware", Usage: "OVMF `FILE` for TDX; without it the preset's"},
			&cli.StringSliceFlag{Name: "gpu-node", Usage: "VFIO `NODE` of a GPU that may be tried (/dev/vfio/devices/vfio0 or /dev/vfio/12); for a whole board one for each GPU and switch"},
			&cli.StringFlag{Name: "gpu-extension", Usage: "extension image `FILE` with NVIDIA's driver (cofferctl guest extension)"},
			&cli.StringFlag{Name: "gpu-verity", Usage: "its `PARAMS`, which that command has printed"},
			&cli.UintFlag{Name: "large-mib", Value: 65536, Usage: "memory of the large guest, in MiB; 0 leaves it out"},
			&cli.DurationFlag{Name: "timeout", Value: 20 * time.Minute, Usage: "give up after this time"},
		},
		Action: func(c *cli.Context) error {
			ctx, cancel := context.WithTimeout(c.Context, c.Duration("timeout"))
			defer cancel()
			guest, err := guestDir(c.String("guest"))
			if err != nil {
				return err
			}
			x := &examination{
				guest: guest, large: uint32(c.Uint("large-mib")),
				firmware: map[string]string{"snp": c.String("snp-firmware"), "tdx": c.String("tdx-firmware")},
				gpus:     c.StringSlice("gpu-node"), extension: c.String("gpu-extension"), verity: c.String("gpu-verity"),
			}
			if given := len(x.gpus) > 0; given != (x.extension != "") || given != (x.verity != "") {
				return fmt.Errorf("--gpu-node, --gpu-extension and --gpu-verity belong together: %w", errdefs.ErrInvalidArgument)
			}
			if x.extension != "" {
				if x.extension, err = filepath.Abs(x.extension); err != nil {
					return err
				}
			}
			return x.run(ctx, c.String("out"))
		},
	})
}

// guestDir is where the guest image lies.
func guestDir(given string) (string, error) {
	if given != "" {
		return filepath.Abs(given)
	}
	if dir := os.Getenv("COFFER_GUEST"); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := cache.Dir()
	if err != nil {
		return "", fmt.Errorf("find the guest image: %w", err)
	}
	return filepath.Join(dir, "guest"), nil
}

// run tries all rows and fails when one that this machine could have closed is open.
func (x *examination) run(ctx context.Context, out string) error {
	program.Say("trying an ordinary guest first: what fails here has nothing to do with a TEE")
	x.rows(ctx, "plain")
	for _, tee := range []string{"snp", "tdx"} {
		program.Say("%s", tee)
		x.rows(ctx, tee)
	}
	r := report{Machine: describeMachine(ctx), Rows: x.done}
	if _, err := program.WriteJSON(out, "hardware.json", r); err != nil {
		return err
	}
	path := filepath.Join(out, "hardware.md")
	if err := os.WriteFile(path, []byte(r.markdown()), 0o644); err != nil {
		return err
	}
	fmt.Print(r.markdown())
	fmt.Println("report:", path)
	var faults []error
	for _, row := range r.Rows {
		if row.Outcome == failed {
			faults = append(faults, fmt.Errorf("%s: %s", row.ID, row.Detail))
		}
	}
	return errors.Join(faults...)
}
