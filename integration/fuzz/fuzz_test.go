package main

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

const sample = `package x

import "testing"

func FuzzGood(f *testing.F)     { f.Add(1); f.Fuzz(func(t *testing.T, n int) {}) }
func FuzzBad(f *testing.F)      { f.Add(1); f.Fuzz(func(t *testing.T, n int) { if n == 1 { t.Fatal("one") } }) }
func FuzzSkipped(f *testing.F)  { f.Skip("not here") }
func NotFuzz(f *testing.F)     { f.Fatal("its name is no target's") }
func fuzzOther(f *testing.F)    {}
`

// module makes one with fuzz targets, in which the working directory is for the rest of the test.
func module(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"go.mod": "module x\n\ngo 1.26\n", "a/x_test.go": sample, "a/testdata/y_test.go": sample, ".git/z_test.go": sample, "a/x.go": "package x\n",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(dir)
}

func TestFind(t *testing.T) {
	module(t)
	for pattern, want := range map[string][]string{
		"":         {"a.FuzzBad", "a.FuzzGood", "a.FuzzSkipped"},
		"FuzzGood": {"a.FuzzGood"},
		"nothing":  nil,
	} {
		found, err := find(".", regexp.MustCompile(pattern))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, f := range found {
			got = append(got, f.String())
		}
		if !slices.Equal(got, want) {
			t.Errorf("%q: got %q, want %q", pattern, got, want)
		}
	}
}

// TestFindsThisRepository: the targets that every release is fuzzed with are found without a list.
func TestFindsThisRepository(t *testing.T) {
	found, err := find("../..", regexp.MustCompile(""))
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	for _, f := range found {
		text.WriteString(f.String() + "\n")
	}
	for _, want := range []string{"guestpull/unpack.FuzzApply\n", "guestpull/unpack/gunzip.FuzzReader\n", "proto/keyprovider.FuzzParsePacket\n"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("%q is not among\n%s", want, text.String())
		}
	}
}

// TestRun runs real targets: one that holds, one that fails, one that skips itself.
func TestRun(t *testing.T) {
	module(t)
	targets, err := find(".", regexp.MustCompile(""))
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	err = runAll(t.Context(), targets, options{time: time.Second, parallel: 1, logs: t.TempDir()}, &out)
	if err == nil || !strings.Contains(err.Error(), "2 of 3 targets failed") {
		t.Errorf("got %v", err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	for i, want := range []string{`^TARGET`, `^a\.FuzzBad .*FAILED`, `^a\.FuzzGood +\S+ +[1-9]\d* +\d+ +\d+ +ok$`, `^a\.FuzzSkipped .*FAILED: nothing was run`} {
		if i >= len(lines) || !regexp.MustCompile(want).MatchString(lines[i]) {
			t.Errorf("line %d is not like %s in\n%s", i, want, out.String())
		}
	}
}
