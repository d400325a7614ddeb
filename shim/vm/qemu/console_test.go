package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestLines(t *testing.T) {
	many := ""
	for i := range 10 {
		many += fmt.Sprintf("line %d\n", i)
	}
	cases := map[string]struct {
		text string
		want []string
	}{
		"none":          {"", nil},
		"last":          {many, []string{"line 7", "line 8", "line 9"}},
		"no line break": {"a\nb", []string{"a", "b"}},
		"control":       {"\x1b[0mred\x07\r\n\n\r\nnext\ttab", []string{"[0mred", "next tab"}},
		"not utf-8":     {"a\xffb\n", []string{"a?b"}},
		"long":          {strings.Repeat("x", 5000) + "\nend\n", []string{strings.Repeat("x", maxConsoleLine), "end"}},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			l := &lines{keep: 3}
			l.readFrom(strings.NewReader(tc.text))
			if got := l.last(3); !slices.Equal(got, tc.want) {
				t.Errorf("got %q", got)
			}
		})
	}
	l := &lines{keep: 3}
	l.readFrom(strings.NewReader(many))
	if got := l.last(2); !slices.Equal(got, []string{"line 8", "line 9"}) {
		t.Errorf("last 2: %q", got)
	}
}

func TestTelling(t *testing.T) {
	l := &lines{keep: 100}
	l.readFrom(strings.NewReader(`[    0.500000] Run /init as init process
agent: cannot mount /proc: no such device
[    1.897000] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100
[    1.897100] CPU: 0 UID: 0 PID: 1 Comm: init Not tainted 6.12.95+deb12-cloud-amd64 #1
[    1.897116]  <TASK>
[    1.897116]  dump_stack_lvl+0x5d/0x80
[    1.897116]  ? arch_exit_to_user_mode_prepare.constprop.0+0x75/0xa0
[    1.897461] RIP: 0033:0x48564b
[    1.897843] Code: 20 48 8b
[    1.902847] RDX: 000034144a1c2e80 RSI: 0000000000000001 RDI: 0000000000000001
[    1.907010]  </TASK>
[    1.907907] Kernel Offset: disabled
`))
	want := []string{
		"agent: cannot mount /proc: no such device",
		"[    1.897000] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100",
	}
	if got := l.telling(2); !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

// FuzzLines feeds the console what a hostile guest may print.
func FuzzLines(f *testing.F) {
	f.Add("[    1.0] hello\r\n\x1b[31m\x00\xff\n" + strings.Repeat("y", 600))
	f.Fuzz(func(t *testing.T, text string) {
		l := &lines{keep: 4}
		l.readFrom(strings.NewReader(text))
		got := append(l.last(4), l.telling(4)...)
		if len(got) > 8 {
			t.Errorf("%d lines", len(got))
		}
		for _, line := range got {
			// One byte of broken UTF-8 becomes one byte, so that cleaning never lengthens a line.
			if len(line) > maxConsoleLine || !utf8.ValidString(line) || strings.ContainsAny(line, "\n\r\x1b\x00") {
				t.Errorf("line %q", line)
			}
		}
	})
}

func TestConsoleFrom(t *testing.T) {
	l := &lines{keep: 3}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := l.from(ctx, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("before the first line: %v", err)
	}
	for i := range 5 {
		l.add(fmt.Sprint("line ", i))
	}
	for from, want := range map[uint64]string{0: "line 2,line 3,line 4", 3: "line 3,line 4", 4: "line 4"} {
		got, next, err := l.from(ctx, from)
		if err != nil || next != 5 || strings.Join(got, ",") != want {
			t.Errorf("from %d: %q, next %d, %v; want %s", from, got, next, err, want)
		}
	}
	got := make(chan []string)
	go func() {
		fresh, _, _ := l.from(t.Context(), 5)
		got <- fresh
	}()
	l.add("late")
	if fresh := <-got; len(fresh) != 1 || fresh[0] != "late" {
		t.Errorf("waited for %q", fresh)
	}
	l.end()
	if _, _, err := l.from(t.Context(), 6); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
}
