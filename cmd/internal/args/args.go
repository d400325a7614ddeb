// Package args puts a command line into the order that the command line library wants.
package args

import (
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// FlagsFirst moves flags between the name of the command that takes them and its arguments, because people write them in any
// order, and the command line library stops at the first argument and does not give a command what stands before its name.
// "--" ends the flags, as everywhere. A command that parses no flags gets its arguments as they are.
func FlagsFirst(app *cli.App, args []string) []string {
	commands, flags := app.Commands, app.Flags
	out, rest := slices.Clone(args[:min(1, len(args))]), args[min(1, len(args)):]
	for {
		command, before, after := nextCommand(commands, flags, rest)
		if command == nil {
			break
		}
		own, others := split(command, flags, before)
		out = append(append(out, others...), rest[len(before)])
		rest = append(own, after...)
		if command.SkipFlagParsing {
			return append(out, rest...)
		}
		commands, flags = command.Subcommands, command.Flags
	}
	var words []string
	for len(rest) > 0 {
		if rest[0] == "--" {
			break
		}
		n := length(flags, rest)
		if isFlag(rest[0]) {
			out = append(out, rest[:n]...)
		} else {
			words = append(words, rest[0])
		}
		rest = rest[n:]
	}
	return append(append(out, words...), rest...)
}

// nextCommand finds the command that the first word of args names, and what stands before and after it.
func nextCommand(commands []*cli.Command, flags []cli.Flag, args []string) (command *cli.Command, before, after []string) {
	known := slices.Concat(flags, flagsOf(commands))
	for i := 0; i < len(args) && args[i] != "--"; i += length(known, args[i:]) {
		if !isFlag(args[i]) {
			return find(commands, args[i]), args[:i], args[i+1:]
		}
	}
	return nil, nil, nil
}

// split tells a command's own flags, with their values, from those of the level above it.
func split(command *cli.Command, flags []cli.Flag, args []string) (own, others []string) {
	mine := flagsOf([]*cli.Command{command})
	for len(args) > 0 {
		n := length(slices.Concat(mine, flags), args)
		if named(mine, args[0]) != nil {
			own = append(own, args[:n]...)
		} else {
			others = append(others, args[:n]...)
		}
		args = args[n:]
	}
	return own, others
}

// flagsOf are those of commands and all that is below them.
func flagsOf(commands []*cli.Command) (flags []cli.Flag) {
	for _, command := range commands {
		flags = append(append(flags, command.Flags...), flagsOf(command.Subcommands)...)
	}
	return flags
}

func find(commands []*cli.Command, name string) *cli.Command {
	for _, command := range commands {
		if command.HasName(name) {
			return command
		}
	}
	return nil
}

func isFlag(arg string) bool { return strings.HasPrefix(arg, "-") && arg != "-" }

// length is how many of args the first one is: two for a flag and its value. An unknown flag takes none: the library reports it.
func length(flags []cli.Flag, args []string) int {
	if !isFlag(args[0]) || strings.Contains(args[0], "=") || len(args) == 1 {
		return 1
	}
	flag := named(flags, args[0])
	if _, boolean := flag.(*cli.BoolFlag); flag == nil || boolean {
		return 1
	}
	return 2
}

// named finds the flag that an argument names, or nil.
func named(flags []cli.Flag, arg string) cli.Flag {
	name, _, _ := strings.Cut(strings.TrimLeft(arg, "-"), "=")
	for _, flag := range flags {
		if slices.Contains(flag.Names(), name) {
			return flag
		}
	}
	return nil
}
