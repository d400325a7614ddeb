package main

import "github.com/urfave/cli/v2"

func imageCommand() *cli.Command {
	return &cli.Command{Name: "image"}
}
