package doctor

import (
	"fmt"
	"io"
	"strings"
)

// colours are those of terminals, by status.
var colours = map[Status]string{OK: "32", NotApplicable: "90", Warn: "33", Fail: "31"}

// WriteTable writes findings for people: a line each, the cure below it, and a sum. colour is for terminals.
func WriteTable(w io.Writer, findings []Finding, colour bool) error {
	width := 0
	for _, f := range findings {
		width = max(width, len(f.Check))
	}
	var text strings.Builder
	counts := map[Status]int{}
	for _, f := range findings {
		counts[f.Status]++
		mark := fmt.Sprintf("%-4s", f.Status)
		if colour {
			mark = "\x1b[" + colours[f.Status] + "m" + mark + "\x1b[0m"
		}
		fmt.Fprintf(&text, "%s  %-*s  %s\n", mark, width, f.Check, f.Fact)
		if f.Cure != "" {
			fmt.Fprintf(&text, "      %-*s  -> %s\n", width, "", f.Cure)
		}
	}
	verdict := "pods can run on this node"
	switch {
	case counts[Fail] > 0:
		verdict = "pods cannot run on this node"
	case counts[Warn] > 0:
		verdict = "pods can run on this node, with limits"
	}
	fmt.Fprintf(&text, "\n%s: %d ok, %d warnings, %d failures\n", verdict, counts[OK], counts[Warn], counts[Fail])
	_, err := io.WriteString(w, text.String())
	return err
}
