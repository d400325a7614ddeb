package main

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

func results(outcomes map[string]outcome) []spec {
	var specs []spec
	for name, o := range outcomes {
		specs = append(specs, spec{Name: name, Outcome: o, Message: "why " + name})
	}
	return specs
}

func TestReport(t *testing.T) {
	var r report
	r.add(&suiteResult{Runtime: "runc", specs: results(map[string]outcome{
		"works": passed, "host": passed, "users": passed, "digest": failed, "apparmor": skipped, "mended": passed, "shaky": passed,
	})})
	for _, shaky := range []outcome{passed, failed} {
		r.add(&suiteResult{Runtime: "coffer", specs: results(map[string]outcome{
			"works": passed, "host": failed, "users": skipped, "digest": failed, "apparmor": skipped, "mended": passed, "shaky": shaky,
		})})
	}
	r.compare(map[string]string{"host": "isolation", "digest": "not ours to make", "mended": "was so once"})

	raw, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Runc, Coffer struct {
			Pass, Fail, Skip int
			Flaky            []string
			Runs             []struct{ Fail int }
		}
		Differences []struct{ Spec, Reason string }
		Outdated    []string
	}
	if err := json.Unmarshal(raw, &got); err != nil {
		t.Fatal(err)
	}
	if c := got.Runc; c.Pass != 5 || c.Fail != 1 || c.Skip != 1 {
		t.Errorf("runc: %+v", c)
	}
	if c := got.Coffer; c.Pass != 3 || c.Fail != 2 || c.Skip != 2 || len(c.Runs) != 2 || c.Runs[1].Fail != 3 || !slices.Equal(c.Flaky, []string{"shaky"}) {
		t.Errorf("coffer: %+v", c)
	}
	var names []string
	for _, d := range got.Differences {
		names = append(names, d.Spec+": "+d.Reason)
	}
	// A skip counts where runc does not skip, and so does a failure in any run.
	if want := []string{"digest: not ours to make", "host: isolation", "shaky: ", "users: "}; !slices.Equal(names, want) {
		t.Errorf("differences %q, want %q", names, want)
	}
	if !slices.Equal(got.Outdated, []string{"mended"}) {
		t.Errorf("outdated: %q", got.Outdated)
	}

	err = r.verdict()
	if err == nil {
		t.Fatal("differences that nothing explains are no error")
	}
	for _, want := range []string{"explains: users", "explains: shaky", "not always alike with coffer: shaky"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the verdict lacks %q: %v", want, err)
		}
	}
	if strings.Contains(err.Error(), "host") {
		t.Errorf("the verdict names a known difference: %v", err)
	}
	var text bytes.Buffer
	r.print(&text)
	if !strings.Contains(text.String(), "UNEXPLAINED: why users") {
		t.Errorf("the table does not show what is unexplained:\n%s", &text)
	}
}

func TestVerdictWithoutDifferences(t *testing.T) {
	var r report
	r.add(&suiteResult{Runtime: "coffer", specs: results(map[string]outcome{"works": passed, "host": failed})})
	r.compare(map[string]string{"host": "isolation"})
	if err := r.verdict(); err != nil {
		t.Error(err)
	}
}
