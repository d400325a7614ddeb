package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
)

// baseline is the runtime that the others are compared with.
const baseline = "runc"

// suiteResult is one run of the suite.
type suiteResult struct {
	Runtime string
	specs   []spec
}

// counts sums a run up. With several runs of one runtime it is the first; Runs has all.
type counts struct {
	Pass    int      `json:"pass"`
	Fail    int      `json:"fail"`
	Skip    int      `json:"skip"`
	Seconds float64  `json:"seconds"`
	Failed  []string `json:"failed"`
	Skipped []string `json:"skipped"`
	// Flaky are the specifications that did not end alike in all runs.
	Flaky []string `json:"flaky,omitempty"`
	Runs  []counts `json:"runs,omitempty"`

	specs map[string]spec
}

// difference is a specification that Coffer does not meet.
type difference struct {
	Spec    string  `json:"spec"`
	Reason  string  `json:"reason"`
	Runtime string  `json:"runtime"`
	Outcome outcome `json:"outcome"`
	// Baseline is how it ended with runc, if that was run.
	Baseline outcome `json:"baseline,omitempty"`
	Message  string  `json:"message,omitempty"`
	// Known is false for one that differences.md does not name.
	Known bool `json:"known"`
}

// report is what report.json holds: counts by runtime, and the differences.
type report struct {
	runtimes    map[string]*counts
	Differences []difference
	// Outdated are specifications that differences.md names and that pass.
	Outdated []string
}

// MarshalJSON puts the runtimes at the top level.
func (r report) MarshalJSON() ([]byte, error) {
	document := map[string]any{"differences": orEmpty(r.Differences), "outdated": orEmpty(r.Outdated)}
	for name, c := range r.runtimes {
		document[name] = c
	}
	return json.Marshal(document)
}

func orEmpty[T any](list []T) []T { return append([]T{}, list...) }

// add takes a run. Runs after a runtime's first only tell whether it behaves alike.
func (r *report) add(result *suiteResult) {
	c := count(result.specs)
	first := r.runtimes[result.Runtime]
	if first == nil {
		if r.runtimes == nil {
			r.runtimes = map[string]*counts{}
		}
		r.runtimes[result.Runtime] = &c
		return
	}
	if first.Runs == nil {
		first.Runs = []counts{*first}
	}
	first.Runs = append(first.Runs, c)
	for name, s := range first.specs {
		if c.specs[name].Outcome != s.Outcome && !slices.Contains(first.Flaky, name) {
			first.Flaky = append(first.Flaky, name)
		}
	}
	slices.Sort(first.Flaky)
}

func count(specs []spec) counts {
	c := counts{Failed: []string{}, Skipped: []string{}, specs: map[string]spec{}}
	for _, s := range specs {
		c.specs[s.Name] = s
		c.Seconds += s.Seconds
		switch s.Outcome {
		case passed:
			c.Pass++
		case failed:
			c.Fail++
			c.Failed = append(c.Failed, s.Name)
		case skipped:
			c.Skip++
			c.Skipped = append(c.Skipped, s.Name)
		}
	}
	slices.Sort(c.Failed)
	slices.Sort(c.Skipped)
	return c
}

// compare finds what Coffer fails in any run, and what it skips although runc does not.
func (r *report) compare(known map[string]string) {
	var base map[string]spec
	if c := r.runtimes[baseline]; c != nil {
		base = c.specs
	}
	for _, runtime := range slices.Sorted(maps.Keys(r.runtimes)) {
		if runtime == baseline {
			continue
		}
		for _, name := range slices.Sorted(maps.Keys(r.runtimes[runtime].specs)) {
			s := worst(r.runtimes[runtime], name)
			reason, named := known[name]
			if s.Outcome == passed {
				if named {
					r.Outdated = append(r.Outdated, name)
				}
				continue
			}
			if s.Outcome == skipped && base[name].Outcome != passed {
				continue
			}
			r.Differences = append(r.Differences, difference{
				Spec: name, Reason: reason, Runtime: runtime, Outcome: s.Outcome, Baseline: base[name].Outcome, Message: s.Message, Known: named,
			})
		}
	}
}

// worst is the run of a specification that ended worst.
func worst(c *counts, name string) spec {
	s := c.specs[name]
	for _, run := range c.Runs {
		other := run.specs[name]
		if rank := []outcome{passed, skipped, failed}; slices.Index(rank, other.Outcome) > slices.Index(rank, s.Outcome) {
			s = other
		}
	}
	return s
}

// verdict is an error when Coffer differs from runc for no known reason.
func (r *report) verdict() error {
	var faults []error
	for _, d := range r.Differences {
		if !d.Known {
			faults = append(faults, fmt.Errorf("%s with %s, which no row of differences.md explains: %s", d.Outcome, d.Runtime, d.Spec))
		}
	}
	for _, runtime := range slices.Sorted(maps.Keys(r.runtimes)) {
		for _, name := range r.runtimes[runtime].Flaky {
			faults = append(faults, fmt.Errorf("not always alike with %s: %s", runtime, name))
		}
	}
	return errors.Join(faults...)
}

func (r *report) print(out io.Writer) {
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(out)
	fmt.Fprintln(table, "runtime\tpass\tfail\tskip\tseconds")
	row := func(name string, c counts) {
		fmt.Fprintf(table, "%s\t%d\t%d\t%d\t%.0f\n", name, c.Pass, c.Fail, c.Skip, c.Seconds)
	}
	for _, runtime := range slices.Sorted(maps.Keys(r.runtimes)) {
		c := r.runtimes[runtime]
		if len(c.Runs) == 0 {
			row(runtime, *c)
		}
		for i, run := range c.Runs {
			row(fmt.Sprintf("%s, run %d", runtime, i+1), run)
		}
	}
	_ = table.Flush()
	for _, d := range r.Differences {
		why := cmp.Or(d.Reason, "UNEXPLAINED: "+firstLine(d.Message))
		fmt.Fprintf(out, "  %s %s: %s\n      %s\n", d.Runtime, d.Outcome, d.Spec, why)
	}
	for _, name := range r.Outdated {
		fmt.Fprintf(out, "  passes, so take its row out of differences.md: %s\n", name)
	}
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}
