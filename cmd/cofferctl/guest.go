package main

import "github.com/urfave/cli/v2"

func guestCommand() *cli.Command {
	return &cli.Command{Name: "guest"}
}
