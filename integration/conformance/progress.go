package main

import (
	"bytes"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"
)

// progress follows critest's output: one line that changes in a terminal, one line for each failure elsewhere.
type progress struct {
	mu      sync.Mutex
	out     *os.File
	live    bool
	runtime string
	started time.Time

	rest             []byte // an unfinished line
	fresh            bool   // the line before was a separator
	current          string
	total            int
	pass, fail, skip int
	width            int // of the terminal
}

func newProgress(out *os.File, runtime string) *progress {
	p := &progress{out: out, runtime: runtime, started: time.Now(), live: term.IsTerminal(int(out.Fd()))}
	if width, _, err := term.GetSize(int(out.Fd())); err == nil {
		p.width = width
	}
	return p
}

// Write takes the next bytes of the output. It never fails.
func (p *progress) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rest = append(p.rest, b...)
	for {
		i := bytes.IndexByte(p.rest, '\n')
		if i < 0 {
			return len(b), nil
		}
		p.line(strings.TrimSpace(string(p.rest[:i])))
		p.rest = p.rest[i+1:]
	}
}

const separator = "------------------------------"

var (
	willRun = regexp.MustCompile(`^Will run (\d+) of \d+ specs`)
	ended   = regexp.MustCompile(`^[•SP]( \[[A-Z!]+\])? \[\d+\.\d+ seconds\]$`)
)

// line reads ginkgo's default reporter: a separator, the name, the output, and the end with a mark and the time.
func (p *progress) line(line string) {
	switch m := ended.FindStringSubmatch(line); {
	case m != nil && strings.Contains(m[1], "SKIPPED"):
		p.skip++
	case m != nil && m[1] == "":
		p.pass++
	case m != nil:
		p.fail++
		p.say("%s failed: %s", p.runtime, p.current)
	case line == separator:
		p.fresh = true
		return
	case p.fresh && strings.HasPrefix(line, specPrefix):
		p.current = plain(line)
	default:
		if m := willRun.FindStringSubmatch(line); m != nil {
			p.total, _ = strconv.Atoi(m[1]) // digits, by the expression
		}
	}
	p.fresh = false
	p.show()
}

// say prints a line that stays.
func (p *progress) say(format string, args ...any) {
	if p.live {
		fmt.Fprint(p.out, "\r\x1b[K")
	}
	fmt.Fprintf(p.out, "  "+format+"\n", args...)
}

func (p *progress) show() {
	if !p.live {
		return
	}
	text := fmt.Sprintf("  %s %s %d/%d, %d failed · %s", p.runtime, time.Since(p.started).Round(time.Second), p.pass+p.fail+p.skip, p.total, p.fail, p.current)
	if runes := []rune(text); p.width > 0 && len(runes) >= p.width {
		text = string(runes[:p.width-1])
	}
	fmt.Fprint(p.out, "\r\x1b[K"+text)
}

// end says how long the suite took.
func (p *progress) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.say("%s: %d passed, %d failed, %d skipped in %s", p.runtime, p.pass, p.fail, p.skip, time.Since(p.started).Round(time.Second))
}
