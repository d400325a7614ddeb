package main

import (
	"maps"
	"strings"
	"testing"
)

func TestParseReport(t *testing.T) {
	const report = `[{"SpecReports": [
		{"LeafNodeType": "BeforeSuite", "State": "passed"},
		{"ContainerHierarchyTexts": ["[k8s.io] Image", "list"], "LeafNodeType": "It", "LeafNodeText": "works", "State": "passed", "RunTime": 1500000000},
		{"LeafNodeType": "It", "LeafNodeText": "a", "State": "failed", "Failure": {"Message": "no such file"}},
		{"LeafNodeType": "It", "LeafNodeText": "b", "State": "panicked", "Failure": {"Message": "Test panicked", "ForwardedPanic": "nil map"}},
		{"LeafNodeType": "It", "LeafNodeText": "c", "State": "timedout"},
		{"LeafNodeType": "It", "LeafNodeText": "d", "State": "skipped", "Failure": {"Message": "no AppArmor"}},
		{"LeafNodeType": "It", "LeafNodeText": "e", "State": "pending"}]}]`
	specs, err := parseReport([]byte(report))
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, s := range specs {
		got[s.Name] = string(s.Outcome) + " " + s.Message
	}
	want := map[string]string{
		"Image list works": "pass ", "a": "fail no such file", "b": "fail Test panicked nil map", "c": "fail ", "d": "skip no AppArmor", "e": "skip ",
	}
	if !maps.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if specs[0].Seconds != 1.5 {
		t.Errorf("the first took %g s, want 1.5", specs[0].Seconds)
	}
}

func TestParseReportThatProvesNothing(t *testing.T) {
	for name, test := range map[string]struct{ report, want string }{
		"no JSON":          {`PASS`, "read ginkgo's report"},
		"empty":            {`[]`, "no specification"},
		"no specification": {`[{"SpecReports": [{"LeafNodeType": "BeforeSuite", "State": "passed"}]}]`, "no specification"},
		"no set-up": {
			`[{"SpecReports": [{"LeafNodeType": "BeforeSuite", "State": "failed", "Failure": {"Message": "no endpoint"}}]}]`, "BeforeSuite failed: no endpoint",
		},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := parseReport([]byte(test.report)); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}
