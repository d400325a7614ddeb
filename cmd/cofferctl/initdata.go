package main

import "github.com/urfave/cli/v2"

func initdataCommand() *cli.Command {
	return &cli.Command{Name: "initdata"}
}
