package args

import (
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

func TestFlagsFirst(t *testing.T) {
	t.Parallel()
	app := &cli.App{Commands: []*cli.Command{{Name: "image", Subcommands: []*cli.Command{{
		Name: "encrypt", Flags: []cli.Flag{&cli.StringFlag{Name: "key-id"}, &cli.BoolFlag{Name: "plain-http"}},
	}}}, {Name: "ps", SkipFlagParsing: true}}}
	for name, test := range map[string]struct{ in, want string }{
		"already first":    {"c image encrypt --key-id K SRC DST", "c image encrypt --key-id K SRC DST"},
		"after arguments":  {"c image encrypt SRC DST --key-id K", "c image encrypt --key-id K SRC DST"},
		"between":          {"c image encrypt SRC --plain-http DST --key-id=K", "c image encrypt --plain-http --key-id=K SRC DST"},
		"boolean keeps":    {"c image encrypt --plain-http SRC DST", "c image encrypt --plain-http SRC DST"},
		"double dash ends": {"c image encrypt SRC -- --key-id K", "c image encrypt SRC -- --key-id K"},
		"standard input":   {"c image encrypt - --key-id K", "c image encrypt --key-id K -"},
		"no command":       {"c --help", "c --help"},
		"others parse":     {"c ps POD --lines 5", "c ps POD --lines 5"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := FlagsFirst(app, strings.Fields(test.in)); !slices.Equal(got, strings.Fields(test.want)) {
				t.Errorf("FlagsFirst(%q) = %q, want %q", test.in, strings.Join(got, " "), test.want)
			}
		})
	}
}
