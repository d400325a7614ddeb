package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"github.com/coffer-project/coffer/owner/broker/config"
	"github.com/coffer-project/coffer/owner/broker/keys"
)

func serveFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "config", Usage: "configuration `FILE`; without the flag " + config.DefaultPath + " is read if it exists"},
		&cli.StringFlag{Name: "listen", Usage: "`HOST:PORT` to listen on"},
		&cli.StringFlag{Name: "tls-cert", Usage: "certificate chain in PEM"},
		&cli.StringFlag{Name: "tls-key", Usage: "key of the certificate in PEM"},
		&cli.BoolFlag{Name: "insecure-http", Usage: "allow plain http on other addresses than loopback"},
		&cli.BoolFlag{Name: "allow-sample", Usage: "accept the sample tee, which proves nothing: for development only"},
		&cli.StringFlag{Name: "store", Usage: "`DIRECTORY` (or file of the kind bolt) of resources, policies and reference values"},
		&cli.StringFlag{Name: "master-key", Usage: "`FILE` with the key that encrypts the store at rest"},
		&cli.StringFlag{Name: "token-key", Usage: "EC P-256 key in PEM that signs tokens"},
		&cli.StringSliceFlag{Name: "admin-key", Usage: "Ed25519 public key in PEM of an admin; may be repeated"},
		&cli.StringFlag{Name: "audit-log", Usage: "`FILE` that audit records are appended to"},
		&cli.StringFlag{Name: "log-level", Usage: "trace, debug, info, warn or error"},
	}
}

// configure reads the file and lays the flags over it.
func configure(c *cli.Context) (config.Config, error) {
	conf, err := load(c)
	if err != nil {
		return conf, err
	}
	for flag, field := range map[string]*string{
		"listen":     &conf.Server.Listen,
		"tls-cert":   &conf.Server.TLSCertFile,
		"tls-key":    &conf.Server.TLSKeyFile,
		"store":      &conf.Store.Path,
		"master-key": &conf.Store.MasterKeyFile,
		"token-key":  &conf.Attest.TokenKeyFile,
		"audit-log":  &conf.Audit.File,
		"log-level":  &conf.LogLevel,
	} {
		if c.IsSet(flag) {
			*field = c.String(flag)
		}
	}
	if c.IsSet("insecure-http") {
		conf.Server.InsecureHTTP = c.Bool("insecure-http")
	}
	if c.IsSet("allow-sample") {
		conf.Attest.AllowSample = c.Bool("allow-sample")
	}
	if c.IsSet("admin-key") {
		conf.Admin.PublicKeyFiles = c.StringSlice("admin-key")
	}
	return conf, nil
}

func load(c *cli.Context) (config.Config, error) {
	if c.Args().Present() {
		return config.Config{}, fmt.Errorf("serve takes no arguments, got %q", c.Args().First())
	}
	if c.IsSet("config") {
		return config.Load(c.String("config"))
	}
	conf, err := config.Load(config.DefaultPath)
	if errors.Is(err, os.ErrNotExist) {
		return config.Default(), nil
	}
	return conf, err
}

func keygenCommand() *cli.Command {
	return &cli.Command{
		Name:  "keygen",
		Usage: "make an admin's key pair (admin.key, admin.pub), a token key (token.key) and a store's master key (master.key)",
		Flags: []cli.Flag{&cli.StringFlag{Name: "dir", Value: ".", Usage: "`DIRECTORY` to write the files to; existing files are never replaced"}},
		Action: func(c *cli.Context) error {
			private, public, err := keys.NewAdmin()
			if err != nil {
				return err
			}
			token, err := keys.NewToken()
			if err != nil {
				return err
			}
			dir := c.String("dir")
			if err := os.MkdirAll(dir, 0o700); err != nil {
				return fmt.Errorf("create key directory: %w", err)
			}
			for _, file := range []struct {
				name string
				data []byte
				mode os.FileMode
			}{{"admin.key", private, 0o600}, {"admin.pub", public, 0o644}, {"token.key", token, 0o600}, {"master.key", keys.NewMaster(), 0o600}} {
				name := filepath.Join(dir, file.name)
				if err := keys.WriteNew(name, file.data, file.mode); err != nil {
					return err
				}
				fmt.Fprintln(c.App.Writer, name)
			}
			return nil
		},
	}
}

func rewrapCommand() *cli.Command {
	return &cli.Command{
		Name: "rewrap", ArgsUsage: "NEW-MASTER-KEY",
		Usage: "replace the store's master key: resources stay, brokers that run go on and need the new key at their next start",
		Flags: []cli.Flag{&cli.StringFlag{Name: "config", Value: config.DefaultPath, Usage: "configuration `FILE` that names the store and its present key"}},
		Action: func(c *cli.Context) error {
			if c.NArg() != 1 {
				return errors.New("want one argument, the file of the new master key")
			}
			conf, err := config.Load(c.String("config"))
			if err != nil {
				return err
			}
			return conf.Rewrap(c.Context, c.Args().First())
		},
	}
}
