package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/containerd/errdefs"
	"github.com/urfave/cli/v2"

	"github.com/coffer-project/coffer/owner/broker/audit"
	"github.com/coffer-project/coffer/owner/broker/ear"
	"github.com/coffer-project/coffer/proto/kbs"
)

// maxAuditLine bounds a record in bytes; claims are the long part.
const maxAuditLine = 4 << 20

func kbsAuditCommand() *cli.Command {
	return &cli.Command{
		Name: "audit", ArgsUsage: "FILE|-",
		Usage: "show a broker's audit log as a table: who asked for what, and what was decided why",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "refused", Usage: "only what was refused"},
			&cli.StringFlag{Name: "resource", Usage: "only releases and changes of one resource, kbs:///REPOSITORY/TYPE/TAG"},
		},
		Action: showAudit,
	}
}

func showAudit(c *cli.Context) error {
	args, err := arguments(c, 1)
	if err != nil {
		return err
	}
	in := c.App.Reader
	if args[0] != "-" {
		f, err := os.Open(args[0])
		if err != nil {
			return fmt.Errorf("read audit log: %w", err)
		}
		defer f.Close()
		in = f
	}
	return printAudit(c.App.Writer, in, func(r *audit.Record) bool {
		return (!c.Bool("refused") || r.Decision == audit.Refused) && (!c.IsSet("resource") || r.Resource == c.String("resource"))
	})
}

func printAudit(out io.Writer, in io.Reader, wanted func(*audit.Record) bool) error {
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "TIME\tFROM\tEVENT\tABOUT\tDECISION\tREASON")
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, maxAuditLine)
	for n := 1; lines.Scan(); n++ {
		var r audit.Record
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			return fmt.Errorf("line %d of the audit log is no record: %w", n, errdefs.ErrInvalidArgument)
		}
		if !wanted(&r) {
			continue
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\n", r.Time.Format(time.DateTime), printable(r.Remote), printable(r.Event), about(&r), printable(r.Decision), printable(r.Reason))
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read audit log: %w", err)
	}
	return table.Flush()
}

// about says in a word what a record is about: the evidence's verdict, the resource, the admin's object.
func about(r *audit.Record) string {
	switch {
	case r.Event == audit.EventAdmin:
		return printable(strings.TrimSpace(r.Admin + " " + r.Action + " " + r.Resource + r.Object))
	case r.Resource != "":
		return printable(r.Resource)
	}
	var claims ear.Claims
	if len(r.Claims) == 0 || json.Unmarshal(r.Claims, &claims) != nil {
		return printable(r.TEE)
	}
	return printable(fmt.Sprintf("%s %s%s", r.TEE, claims.Submods[ear.CPU].Status, devices(&claims)))
}

// devices counts a guest's devices of one kind and verdict: ", 8 gpu Hopper affirming".
func devices(claims *ear.Claims) string {
	count := map[string]int{}
	for name, part := range claims.Submods {
		if name == ear.CPU {
			continue
		}
		var device struct {
			Arch string `json:"arch"`
		}
		kind := strings.TrimRight(name, "0123456789")
		if err := json.Unmarshal(part.Evidence[kbs.DeviceNVIDIA], &device); err == nil && device.Arch != "" {
			kind += " " + device.Arch
		}
		count[kind+" "+string(part.Status)]++
	}
	var text strings.Builder
	for _, kind := range slices.Sorted(maps.Keys(count)) {
		fmt.Fprintf(&text, ", %d %s", count[kind], kind)
	}
	return text.String()
}

// printable keeps what peers wrote from moving the cursor or the columns.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0x7f {
			return ' '
		}
		return r
	}, s)
}
