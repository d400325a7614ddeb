package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/containerd/errdefs"
	"github.com/urfave/cli/v2"

	"github.com/coffer-project/coffer/owner/broker/client"
	"github.com/coffer-project/coffer/proto/kbs"
)

// resourcePolicy is the word that names the resource policy on the command line; all others are ids of attestation policies.
const resourcePolicy = "resource"

// maxPolicyFile bounds a policy's text in bytes.
const maxPolicyFile = kbs.MaxPolicyRequest / 2

func kbsPolicyCommand() *cli.Command {
	return &cli.Command{
		Name:  "policy",
		Usage: "set, show, list or delete policies in Rego: \"resource\" decides who gets what, default_cpu, default_gpu ... appraise evidence",
		Subcommands: []*cli.Command{
			{
				Name: "set", ArgsUsage: "resource|ID FILE|-",
				Usage:  "create or replace a policy; one that does not compile changes nothing",
				Flags:  brokerFlags(),
				Action: setPolicy,
			},
			{
				Name: "show", ArgsUsage: "resource|ID",
				Usage:  "print the policy that holds (coffer-kbs only)",
				Flags:  brokerFlags(),
				Action: showPolicy,
			},
			{
				Name:   "list",
				Usage:  "show which policies hold (coffer-kbs only)",
				Flags:  brokerFlags(),
				Action: listPolicies,
			},
			{
				Name: "delete", ArgsUsage: "resource|ID",
				Usage:  "remove a policy, so that the built-in one holds again (coffer-kbs only)",
				Flags:  brokerFlags(),
				Action: deletePolicy,
			},
		},
	}
}

// arguments returns a command's arguments, of which there must be as many as its usage says.
func arguments(c *cli.Context, want int) ([]string, error) {
	if c.NArg() != want {
		return nil, fmt.Errorf("want %d arguments, %s: %w", want, c.Command.ArgsUsage, errdefs.ErrInvalidArgument)
	}
	return c.Args().Slice(), nil
}

// readInput reads a file, or standard input for "-", of at most limit bytes.
func readInput(c *cli.Context, name string, limit int64) ([]byte, error) {
	in := c.App.Reader
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	data, err := io.ReadAll(io.LimitReader(in, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%s is larger than %d bytes: %w", name, limit, errdefs.ErrInvalidArgument)
	}
	return data, nil
}

func setPolicy(c *cli.Context) error {
	args, err := arguments(c, 2)
	if err != nil {
		return err
	}
	text, err := readInput(c, args[1], maxPolicyFile)
	if err != nil {
		return err
	}
	broker, err := brokerClient(c)
	if err != nil {
		return err
	}
	if args[0] == resourcePolicy {
		return broker.SetResourcePolicy(c.Context, text)
	}
	return broker.SetAttestationPolicy(c.Context, args[0], text)
}

func policyOf(c *cli.Context, broker *client.Client, id string) (*kbs.PolicyText, error) {
	if id == resourcePolicy {
		return broker.ResourcePolicy(c.Context)
	}
	return broker.AttestationPolicy(c.Context, id)
}

func showPolicy(c *cli.Context) error {
	args, err := arguments(c, 1)
	if err != nil {
		return err
	}
	broker, err := brokerClient(c)
	if err != nil {
		return err
	}
	policy, err := policyOf(c, broker, args[0])
	if err != nil {
		return err
	}
	fmt.Fprintln(c.App.Writer, strings.TrimSuffix(policy.Text, "\n"))
	return nil
}

func listPolicies(c *cli.Context) error {
	broker, err := brokerClient(c)
	if err != nil {
		return err
	}
	ids, err := broker.AttestationPolicies(c.Context)
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(c.App.Writer, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "POLICY\tSOURCE\tDIGEST")
	for _, id := range append([]string{resourcePolicy}, ids...) {
		policy, err := policyOf(c, broker, id)
		if err != nil {
			return err
		}
		source := "handed in"
		if policy.BuiltIn {
			source = "built in"
		}
		fmt.Fprintf(table, "%s\t%s\t%s\n", id, source, policy.Digest)
	}
	return table.Flush()
}

func deletePolicy(c *cli.Context) error {
	args, err := arguments(c, 1)
	if err != nil {
		return err
	}
	broker, err := brokerClient(c)
	if err != nil {
		return err
	}
	if args[0] == resourcePolicy {
		return broker.ResetResourcePolicy(c.Context)
	}
	return broker.DeleteAttestationPolicy(c.Context, args[0])
}

func showStatus(c *cli.Context) error {
	broker, err := brokerClient(c)
	if err != nil {
		return err
	}
	s, err := broker.Status(c.Context)
	if err != nil {
		return err
	}
	kinds := []string{}
	for _, tee := range s.TEEs {
		kinds = append(kinds, string(tee))
	}
	table := tabwriter.NewWriter(c.App.Writer, 0, 0, 2, ' ', 0)
	for _, row := range [][2]string{
		{"version", s.Version},
		{"accepted tees", strings.Join(append(kinds, s.Devices...), ", ")},
		{"resource policy", s.ResourcePolicy},
		{"attestation policies", strings.Join(s.AttestationPolicies, ", ")},
		{"resources", fmt.Sprint(s.Resources)},
		{"reference values", fmt.Sprint(s.ReferenceValues)},
		{"you are", s.Admin + " (" + strings.Join(s.Roles, ", ") + ")"},
	} {
		if row[1] == "" {
			row[1] = "none"
		}
		fmt.Fprintf(table, "%s\t%s\n", row[0], row[1])
	}
	return table.Flush()
}
