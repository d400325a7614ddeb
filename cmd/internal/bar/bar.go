// Package bar draws how far image pulls have come, for terminals.
package bar

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/term"
)

// cells is how many characters a bar has.
const cells = 24

// minute is when a time is told in minutes.
const minute = time.Minute

// Pull is what is drawn of a pull. Bytes and layers may be more than their totals: both come from others.
type Pull struct {
	// Title comes first, Phase after the bar.
	Title, Phase             string
	LayersDone, Layers       int
	BytesFetched, TotalBytes int64
	// Rate is in bytes per second; 0 is left out.
	Rate int64
	Took time.Duration
}

// String returns the pull as one line.
func (p Pull) String() string {
	share := 0.0
	if p.TotalBytes > 0 {
		share = min(max(float64(p.BytesFetched)/float64(p.TotalBytes), 0), 1)
	}
	full := int(share * cells)
	line := fmt.Sprintf("[%s%s] %3.0f %%  %-8s", strings.Repeat("#", full), strings.Repeat(".", cells-full), share*100, p.Phase)
	if p.Title != "" {
		line = p.Title + "  " + line
	}
	if p.TotalBytes > 0 {
		line += fmt.Sprintf("  %d/%d layers  %s of %s", p.LayersDone, p.Layers, Bytes(p.BytesFetched), Bytes(p.TotalBytes))
	}
	if p.Rate > 0 {
		line += "  " + Bytes(p.Rate) + "/s"
	}
	return line + "  " + Time(p.Took)
}

// Bytes writes a size for people.
func Bytes(n int64) string {
	switch {
	case n < 1<<10:
		return fmt.Sprintf("%d B", n)
	case n < 1<<20:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	case n < 1<<30:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	default:
		return fmt.Sprintf("%.2f GiB", float64(n)/(1<<30))
	}
}

// Time writes a duration for people.
func Time(d time.Duration) string {
	if d < minute {
		return fmt.Sprintf("%.1fs", d.Seconds())
	}
	return d.Round(time.Second).String()
}

// Width returns how many characters a line of the terminal that w is has; ok is false for anything else.
func Width(w io.Writer) (width int, ok bool) {
	f, isFile := w.(*os.File)
	if !isFile {
		return 0, false
	}
	width, _, err := term.GetSize(int(f.Fd()))
	return width, err == nil && width > 0
}

// Screen draws lines over the ones that it drew before, on a terminal.
type Screen struct {
	w     io.Writer
	width int
	drawn int
}

// NewScreen returns a screen on a terminal whose lines have width characters.
func NewScreen(w io.Writer, width int) *Screen { return &Screen{w: w, width: width} }

// Draw replaces what was drawn. Lines are cut where the terminal would break them, and what would control it is replaced.
func (s *Screen) Draw(lines []string) error {
	var text strings.Builder
	if s.drawn > 0 {
		fmt.Fprintf(&text, "\x1b[%dA", s.drawn) // up
	}
	text.WriteString("\r\x1b[J") // and clear what is below
	for _, line := range lines {
		text.WriteString(cut(line, s.width) + "\n")
	}
	s.drawn = len(lines)
	_, err := io.WriteString(s.w, text.String())
	return err
}

// cut keeps a line to a width.
func cut(line string, width int) string {
	out := make([]rune, 0, len(line))
	for _, r := range line {
		if len(out) >= width-1 {
			break
		}
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			r = '?'
		}
		out = append(out, r)
	}
	return string(out)
}
