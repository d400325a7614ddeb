// Package args puts a command line into the order that the command line library wants.
package args

import (
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// FlagsFirst moves flags before the arguments of the command that args name, because people write them in either order
// and the command line library stops at the first argument. "--" ends the flags, as everywhere. A command that parses no
// flags gets its arguments as they are.
func FlagsFirst(app *cli.App, args []string) []string {
	commands, flags := app.Commands, app.Flags
	i := 1
	for ; i < len(args); i++ {
		command := find(commands, args[i])
		if command == nil {
			break
		}
		if command.SkipFlagParsing {
			return args
		}
		commands, flags = command.Subcommands, command.Flags
	}
	out, rest := args[:i:i], []string{}
	for ; i < len(args); i++ {
		switch arg := args[i]; {
		case arg == "--":
			rest = append(rest, args[i:]...)
			return append(out, rest...)
		case !strings.HasPrefix(arg, "-") || arg == "-":
			rest = append(rest, arg)
		default:
			out = append(out, arg)
			if takesValue(flags, arg) && i+1 < len(args) {
				i++
				out = append(out, args[i])
			}
		}
	}
	return append(out, rest...)
}

func find(commands []*cli.Command, name string) *cli.Command {
	for _, command := range commands {
		if command.HasName(name) {
			return command
		}
	}
	return nil
}

// takesValue tells whether the argument after arg belongs to it. An unknown flag takes none: the library reports it.
func takesValue(flags []cli.Flag, arg string) bool {
	if strings.Contains(arg, "=") {
		return false
	}
	name := strings.TrimLeft(arg, "-")
	for _, flag := range flags {
		if slices.Contains(flag.Names(), name) {
			_, boolean := flag.(*cli.BoolFlag)
			return !boolean
		}
	}
	return false
}
