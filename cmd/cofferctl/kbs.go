package main

import "github.com/urfave/cli/v2"

func kbsCommand() *cli.Command {
	return &cli.Command{Name: "kbs"}
}
