package main

import (
	"fmt"
	"io"
	"os"

	"github.com/containerd/errdefs"
	"github.com/urfave/cli/v2"

	"github.com/coffer-project/coffer/owner/broker/client"
	"github.com/coffer-project/coffer/owner/broker/keys"
	"github.com/coffer-project/coffer/proto/kbs"
)

func kbsCommand() *cli.Command {
	return &cli.Command{
		Name:  "kbs",
		Usage: "manage a key broker: resources, policies, reference values, audit log",
		Subcommands: []*cli.Command{
			{
				Name:  "resource",
				Usage: "put, delete or list resources",
				Subcommands: []*cli.Command{
					{
						Name: "put", ArgsUsage: "kbs:///REPOSITORY/TYPE/TAG FILE|-",
						Usage:  "create or replace a resource with the bytes of a file, or of standard input",
						Flags:  brokerFlags(),
						Action: putResource,
					},
					{
						Name: "delete", ArgsUsage: "kbs:///REPOSITORY/TYPE/TAG",
						Usage:  "remove a resource",
						Flags:  brokerFlags(),
						Action: deleteResource,
					},
					{
						Name:   "list",
						Usage:  "print the names of all resources (coffer-kbs only)",
						Flags:  brokerFlags(),
						Action: listResources,
					},
				},
			},
			kbsPolicyCommand(),
			kbsReferenceCommand(),
			{
				Name:   "status",
				Usage:  "show what the broker accepts and holds, and whom it takes you for (coffer-kbs only)",
				Flags:  brokerFlags(),
				Action: showStatus,
			},
			kbsAuditCommand(),
			{
				Name: "admin-keygen", ArgsUsage: "FILE",
				Usage:  "make an admin's Ed25519 key pair: FILE and FILE.pub, which the broker is configured with",
				Action: adminKeygen,
			},
		},
	}
}

func brokerFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "url", Usage: "the broker's base `URL`", EnvVars: []string{"COFFER_KBS_URL"}, Required: true},
		&cli.StringFlag{Name: "ca", Usage: "`FILE` with the only CA in PEM to trust for the broker", EnvVars: []string{"COFFER_KBS_CA"}},
		&cli.StringFlag{Name: "admin-key", Usage: "`FILE` with the admin's Ed25519 private key in PEM", EnvVars: []string{"COFFER_KBS_ADMIN_KEY"}, Required: true},
	}
}

// brokerClient returns a client for the broker that the flags name.
func brokerClient(c *cli.Context) (*client.Client, error) {
	raw, err := os.ReadFile(c.String("admin-key"))
	if err != nil {
		return nil, fmt.Errorf("read admin key: %w", err)
	}
	key, err := keys.ParseAdminPrivate(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.String("admin-key"), err)
	}
	var ca []byte
	if name := c.String("ca"); name != "" {
		if ca, err = os.ReadFile(name); err != nil {
			return nil, fmt.Errorf("read CA: %w", err)
		}
	}
	return client.New(client.Options{URL: c.String("url"), CACertPEM: ca, Key: key})
}

func putResource(c *cli.Context) error {
	uri, err := resourceArgument(c, 2)
	if err != nil {
		return err
	}
	in := c.App.Reader
	if name := c.Args().Get(1); name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return fmt.Errorf("read resource: %w", err)
		}
		defer f.Close()
		in = f
	}
	data, err := io.ReadAll(io.LimitReader(in, kbs.MaxResource+1))
	if err != nil {
		return fmt.Errorf("read resource: %w", err)
	}
	broker, err := brokerClient(c)
	if err != nil {
		return err
	}
	if err := broker.Put(c.Context, uri, data); err != nil {
		return err
	}
	fmt.Fprintf(c.App.Writer, "%s %d bytes\n", uri, len(data))
	return nil
}

func deleteResource(c *cli.Context) error {
	uri, err := resourceArgument(c, 1)
	if err != nil {
		return err
	}
	broker, err := brokerClient(c)
	if err != nil {
		return err
	}
	return broker.Delete(c.Context, uri)
}

func listResources(c *cli.Context) error {
	broker, err := brokerClient(c)
	if err != nil {
		return err
	}
	uris, err := broker.List(c.Context)
	if err != nil {
		return err
	}
	for _, uri := range uris {
		fmt.Fprintln(c.App.Writer, uri)
	}
	return nil
}

func resourceArgument(c *cli.Context, want int) (kbs.ResourceURI, error) {
	if c.NArg() != want {
		return kbs.ResourceURI{}, fmt.Errorf("want %d arguments, %s: %w", want, c.Command.ArgsUsage, errdefs.ErrInvalidArgument)
	}
	return kbs.ParseResourceURI(c.Args().First())
}

func adminKeygen(c *cli.Context) error {
	if c.NArg() != 1 {
		return fmt.Errorf("want one argument, the FILE for the private key: %w", errdefs.ErrInvalidArgument)
	}
	private, public, err := keys.NewAdmin()
	if err != nil {
		return err
	}
	name := c.Args().First()
	if err := keys.WriteNew(name, private, 0o600); err != nil {
		return err
	}
	if err := keys.WriteNew(name+".pub", public, 0o644); err != nil {
		return err
	}
	fmt.Fprintf(c.App.Writer, "%s\n%s.pub\n", name, name)
	return nil
}
