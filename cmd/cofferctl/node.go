package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/urfave/cli/v2"
)

// nodeBinary holds the commands for a node's admin. It is a program of its own because this one holds an owner's tools,
// and nothing on a host may link code that decrypts.
const nodeBinary = "coffer-node"

// nodeCommands hand on to the host's half, with all arguments as they are.
func nodeCommands() []*cli.Command {
	var commands []*cli.Command
	for _, c := range []struct{ name, usage string }{
		{"doctor", "examine this node and say what to do about each fault"},
		{"ps", "list this node's pods, and what killed shims have left"},
		{"pulls", "show how far guests are with the images of their containers, and how long they took"},
		{"console", "show what a pod's guest has written to its console"},
		{"clean", "release what killed shims have left and containerd has forgotten"},
		{"config", "print or check the configuration of the shim or the snapshotter"},
		{"launch", "show what a TEE measures of a configuration's pods, and how to compute it"},
		{"metrics", "serve this node's figures to Prometheus"},
	} {
		commands = append(commands, &cli.Command{
			Name: c.name, Usage: c.usage, Category: "node", SkipFlagParsing: true,
			Action: func(ctx *cli.Context) error { return runNode(append([]string{c.name}, ctx.Args().Slice()...)) },
		})
	}
	return commands
}

// runNode becomes the host's half. It returns only when that fails.
func runNode(args []string) error {
	path, err := findNode()
	if err != nil {
		return err
	}
	if err := syscall.Exec(path, append([]string{nodeBinary}, args...), os.Environ()); err != nil {
		return fmt.Errorf("run %s: %w", path, err)
	}
	return nil
}

// findNode looks beside this program first, so that a build is tried out as a whole.
func findNode() (string, error) {
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), nodeBinary)
		if _, err := exec.LookPath(beside); err == nil {
			return beside, nil
		}
	}
	path, err := exec.LookPath(nodeBinary)
	if err != nil {
		return "", errors.New(nodeBinary + " is not installed: it does cofferctl's work on a node, put it beside cofferctl or on PATH")
	}
	return path, nil
}
