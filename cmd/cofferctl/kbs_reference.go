package main

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/containerd/errdefs"
	"github.com/urfave/cli/v2"

	"github.com/coffer-project/coffer/owner/appraise"
	"github.com/coffer-project/coffer/proto/kbs"
)

func kbsReferenceCommand() *cli.Command {
	return &cli.Command{
		Name:  "reference",
		Usage: "import, list or delete the values that guests are compared with, such as launch measurements",
		Subcommands: []*cli.Command{
			{
				Name: "import", ArgsUsage: "FILE|-",
				Usage: "hand in reference values: what cofferctl measure wrote, {\"name\": [values]}, or a message to Trustee's RVPS",
				Flags: append([]cli.Flag{
					&cli.BoolFlag{Name: "add", Usage: "add to the lists of values that are there instead of replacing them, for example while two guest images are in use"},
				}, brokerFlags()...),
				Action: importReferences,
			},
			{
				Name:   "list",
				Usage:  "show the reference values and when they end (coffer-kbs only)",
				Flags:  brokerFlags(),
				Action: listReferences,
			},
			{
				Name: "delete", ArgsUsage: "NAME",
				Usage:  "remove a reference value (coffer-kbs only)",
				Flags:  brokerFlags(),
				Action: deleteReference,
			},
		},
	}
}

func importReferences(c *cli.Context) error {
	args, err := arguments(c, 1)
	if err != nil {
		return err
	}
	raw, err := readInput(c, args[0], kbs.MaxReferences)
	if err != nil {
		return err
	}
	values, err := appraise.ParseValues(raw)
	if err != nil {
		return err
	}
	broker, err := brokerClient(c)
	if err != nil {
		return err
	}
	if c.Bool("add") {
		for name, value := range values {
			old, err := broker.Reference(c.Context, name)
			if err != nil {
				return err
			}
			values[name] = union(old, value)
		}
	}
	message, err := values.Message()
	if err != nil {
		return err
	}
	if err := broker.RegisterReferences(c.Context, message); err != nil {
		return err
	}
	fmt.Fprintf(c.App.Writer, "%d reference values\n", len(values))
	return nil
}

// union returns the list of what is in either; nil is nothing, and what is no list counts as a list of one.
func union(old, fresh any) any {
	if old == nil {
		return fresh
	}
	var all []any
	for _, value := range []any{old, fresh} {
		list, ok := value.([]any)
		if !ok {
			list = []any{value}
		}
		for _, v := range list {
			if !slices.ContainsFunc(all, func(have any) bool { return reflect.DeepEqual(have, v) }) {
				all = append(all, v)
			}
		}
	}
	return all
}

func listReferences(c *cli.Context) error {
	broker, err := brokerClient(c)
	if err != nil {
		return err
	}
	values, err := broker.References(c.Context)
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(c.App.Writer, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "NAME\tENDS\tVALUE")
	for _, v := range values {
		// Lists of digests are long: one line for each.
		lines := []json.RawMessage{v.Value}
		var list []json.RawMessage
		if err := json.Unmarshal(v.Value, &list); err == nil && len(list) > 0 {
			lines = list
		}
		name, ends := v.Name, v.Expiration.Format(time.DateOnly)
		for _, line := range lines {
			fmt.Fprintf(table, "%s\t%s\t%s\n", name, ends, line)
			name, ends = "", ""
		}
	}
	return table.Flush()
}

func deleteReference(c *cli.Context) error {
	args, err := arguments(c, 1)
	if err != nil {
		return err
	}
	if args[0] == "" {
		return fmt.Errorf("the name is empty: %w", errdefs.ErrInvalidArgument)
	}
	broker, err := brokerClient(c)
	if err != nil {
		return err
	}
	return broker.DeleteReference(c.Context, args[0])
}
