package args

import (
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

func TestFlagsFirst(t *testing.T) {
	t.Parallel()
	app := &cli.App{
		Flags: []cli.Flag{&cli.StringFlag{Name: "log-level"}, &cli.BoolFlag{Name: "version"}},
		Commands: []*cli.Command{{Name: "image", Subcommands: []*cli.Command{{
			Name: "encrypt", Flags: []cli.Flag{&cli.StringFlag{Name: "key-id"}, &cli.BoolFlag{Name: "plain-http"}},
		}}}, {Name: "ps", SkipFlagParsing: true}, {
			Name: "serve", Flags: []cli.Flag{&cli.StringFlag{Name: "log-level"}, &cli.StringFlag{Name: "socket", Aliases: []string{"s"}}},
		}},
	}
	for name, test := range map[string]struct{ in, want string }{
		"already first":     {"c image encrypt --key-id K SRC DST", "c image encrypt --key-id K SRC DST"},
		"after arguments":   {"c image encrypt SRC DST --key-id K", "c image encrypt --key-id K SRC DST"},
		"between":           {"c image encrypt SRC --plain-http DST --key-id=K", "c image encrypt --plain-http --key-id=K SRC DST"},
		"boolean keeps":     {"c image encrypt --plain-http SRC DST", "c image encrypt --plain-http SRC DST"},
		"double dash ends":  {"c image encrypt SRC -- --key-id K", "c image encrypt SRC -- --key-id K"},
		"standard input":    {"c image encrypt - --key-id K", "c image encrypt --key-id K -"},
		"no command":        {"c --help", "c --help"},
		"others parse":      {"c ps POD --lines 5", "c ps POD --lines 5"},
		"before its name":   {"c --socket S serve", "c serve --socket S"},
		"by its alias":      {"c -s=S serve", "c serve -s=S"},
		"known to both":     {"c --log-level debug serve", "c serve --log-level debug"},
		"not the command's": {"c --version --socket S serve --log-level x", "c --version serve --socket S --log-level x"},
		"before a command":  {"c --key-id K image encrypt SRC DST", "c image encrypt --key-id K SRC DST"},
		"in between":        {"c image --key-id K --plain-http encrypt SRC DST", "c image encrypt --key-id K --plain-http SRC DST"},
		"value like a name": {"c --socket serve IMAGE DIR", "c --socket serve IMAGE DIR"},
		"argument like one": {"c IMAGE serve", "c IMAGE serve"},
		"unknown before":    {"c --nothing serve", "c --nothing serve"},
		"after the end":     {"c -- serve --socket S", "c -- serve --socket S"},
		"nothing":           {"c", "c"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := FlagsFirst(app, strings.Fields(test.in)); !slices.Equal(got, strings.Fields(test.want)) {
				t.Errorf("FlagsFirst(%q) = %q, want %q", test.in, strings.Join(got, " "), test.want)
			}
		})
	}
}
