package bar

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

func TestPull(t *testing.T) {
	cases := map[string]struct {
		pull Pull
		want string
	}{
		"resolving": {Pull{Phase: "resolve", Took: 300 * time.Millisecond}, "[........................]   0 %  resolve   0.3s"},
		"half": {
			Pull{Title: "default/web", Phase: "fetch", LayersDone: 3, Layers: 7, BytesFetched: 1 << 20, TotalBytes: 2 << 20, Rate: 3 << 20, Took: 90 * time.Second},
			"default/web  [############............]  50 %  fetch     3/7 layers  1.0 MiB of 2.0 MiB  3.0 MiB/s  1m30s",
		},
		"more than all": {
			Pull{Phase: "done", LayersDone: 1, Layers: 1, BytesFetched: 3 << 30, TotalBytes: 2 << 30, Took: time.Second},
			"[########################] 100 %  done      1/1 layers  3.00 GiB of 2.00 GiB  1.0s",
		},
		"less than nothing": {
			Pull{Phase: "fetch", BytesFetched: -5, TotalBytes: 2000, Took: time.Second},
			"[........................]   0 %  fetch     0/0 layers  -5 B of 2.0 KiB  1.0s",
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			if got := tc.pull.String(); got != tc.want {
				t.Errorf("got  %q\nwant %q", got, tc.want)
			}
		})
	}
}

func TestScreen(t *testing.T) {
	var out bytes.Buffer
	s := NewScreen(&out, 10)
	for _, lines := range [][]string{{"one", "a line that is too long"}, {"evil\x1b[2J\u009b"}, nil} {
		if err := s.Draw(lines); err != nil {
			t.Fatal(err)
		}
	}
	const wiped = "\r\x1b[J"
	want := wiped + "one\na line th\n" + "\x1b[2A" + wiped + "evil?[2J?\n" + "\x1b[1A" + wiped
	if out.String() != want {
		t.Errorf("got  %q\nwant %q", out.String(), want)
	}
	if _, terminal := Width(&out); terminal {
		t.Error("a buffer is taken for a terminal")
	}
	if strings.Contains(cut("\x7f\t", 5), "\t") {
		t.Error("a tab is left")
	}
}
