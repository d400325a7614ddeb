package sandbox

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/shim/vm"
)

// talker is a VM of which only the console counts.
type talker struct {
	vm.Instance

	lines []string
}

func (t talker) Console() []string { return t.lines }

func TestWithConsole(t *testing.T) {
	var long []string
	for i := range quotedLines + 5 {
		long = append(long, fmt.Sprintf("line number %d", i))
	}
	for name, tc := range map[string]struct {
		err   string
		lines []string
		want  string
	}{
		"silent":          {"boom", nil, "boom"},
		"not quoted":      {"boom", []string{"first line", "last line"}, "boom; last console lines: first line | last line"},
		"quoted":          {"boom: first line", []string{"first line", "last line"}, "boom: first line"},
		"quoted long ago": {"boom: line number 0", long, "boom: line number 0"},
		"by chance":       {"boom", []string{"oom"}, "boom; last console lines: oom"},
		"too much":        {"boom", long, "boom; last console lines: " + strings.Join(long[5:], " | ")},
	} {
		t.Run(name, func(t *testing.T) {
			if got := withConsole(errors.New(tc.err), talker{lines: tc.lines}); got.Error() != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}
