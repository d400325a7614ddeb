package main

import (
	"maps"
	"os"
	"testing"
)

func TestParseResults(t *testing.T) {
	got := parseResults(`=== RUN   TestA
time="x" level=info
--- PASS: TestA (0.01s)
=== RUN   TestB
=== RUN   TestB/sub
--- FAIL: TestB (1.00s)
    --- FAIL: TestB/sub (1.00s)
=== RUN   TestC
--- SKIP: TestC (0.00s)
=== RUN   TestBroken
panic: boom
`)
	want := map[string]outcome{"TestA": passed, "TestB": failed, "TestC": skipped, "TestBroken": failed}
	if !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestParseDifferences(t *testing.T) {
	known, err := parseDifferences("# Head\n| test | reason |\n| --- | --- |\n| `TestA` | it does |\n")
	if err != nil || !maps.Equal(known, map[string]string{"TestA": "it does"}) {
		t.Errorf("got %v, %v", known, err)
	}
	for name, text := range map[string]string{
		"no reason":  "| `TestA` | |",
		"twice":      "| `TestA` | a |\n| `TestA` | b |",
		"many cells": "| `TestA` | a | b |",
	} {
		if _, err := parseDifferences(text); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestVerdict(t *testing.T) {
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for name, test := range map[string]struct {
		results map[string]outcome
		known   map[string]string
		fails   bool
	}{
		"all pass":        {results: map[string]outcome{"TestA": passed}},
		"known failure":   {results: map[string]outcome{"TestA": failed}, known: map[string]string{"TestA": "so"}},
		"unknown failure": {results: map[string]outcome{"TestA": failed}, fails: true},
		"mended":          {results: map[string]outcome{"TestA": passed}, known: map[string]string{"TestA": "so"}, fails: true},
		"passes at times": {results: map[string]outcome{"TestA": passed}, known: map[string]string{"TestA": "at times: so"}},
		"fails at times":  {results: map[string]outcome{"TestA": failed}, known: map[string]string{"TestA": "at times: so"}},
		"known, not run":  {results: map[string]outcome{"TestB": passed}, known: map[string]string{"TestA": "so"}},
		"nothing ran":     {fails: true},
	} {
		if err := verdict(null, test.results, test.known); (err != nil) != test.fails {
			t.Errorf("%s: %v", name, err)
		}
	}
}
