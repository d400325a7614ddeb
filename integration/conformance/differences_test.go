package main

import (
	"maps"
	"strings"
	"testing"
)

func TestParseDifferences(t *testing.T) {
	got, err := parseDifferences(`# Title

| spec | reason |
| --- | --- |
| a [Conformance] | the host's name space |
|b|two|

Text in between.

| spec | reason |
|---|---|
| c | three |
`)
	if err != nil {
		t.Fatal(err)
	}
	if want := map[string]string{"a [Conformance]": "the host's name space", "b": "two", "c": "three"}; !maps.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestParseDifferencesRefuses(t *testing.T) {
	const head = "| spec | reason |\n| --- | --- |\n"
	for name, test := range map[string]struct{ rows, want string }{
		"no reason":    {"| a | |", "line 3 names no specification or no reason"},
		"three cells":  {"| a | b | c |", "line 3 has 3 cells"},
		"a name twice": {"| a | b |\n| a | c |", `line 4 names "a" again`},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := parseDifferences(head + test.rows); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

// TestCommittedDifferences keeps the file readable that every run begins with.
func TestCommittedDifferences(t *testing.T) {
	if _, err := readDifferences("../../contrib/conformance/differences.md"); err != nil {
		t.Error(err)
	}
}
