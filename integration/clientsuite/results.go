package main

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// outcome is how a test ended.
type outcome string

// The outcomes. A test that had begun when the suite broke off has failed.
const (
	passed  outcome = "pass"
	failed  outcome = "fail"
	skipped outcome = "skip"
)

var outcomes = map[string]outcome{"PASS": passed, "FAIL": failed, "SKIP": skipped}

// resultLine is how the testing package tells the end of a test that is no part of another, runLine its begin.
var (
	resultLine = regexp.MustCompile(`(?m)^--- (PASS|FAIL|SKIP): (Test\S+) \(`)
	runLine    = regexp.MustCompile(`(?m)^=== RUN   (Test[^/\s]+)$`)
)

// parseResults reads the verbose output of a test binary.
func parseResults(text string) map[string]outcome {
	results := map[string]outcome{}
	for _, match := range runLine.FindAllStringSubmatch(text, -1) {
		results[match[1]] = failed
	}
	for _, match := range resultLine.FindAllStringSubmatch(text, -1) {
		results[match[2]] = outcomes[match[1]]
	}
	return results
}

func sorted(results map[string]outcome) []string { return slices.Sorted(maps.Keys(results)) }

// parseDifferences reads every row of two cells, test and reason, from tables of Markdown whose first cell is a name in
// back-quotes.
func parseDifferences(text string) (map[string]string, error) {
	known := map[string]string{}
	var faults []error
	for i, line := range strings.Split(text, "\n") {
		if !strings.HasPrefix(line, "| `") {
			continue
		}
		cells := strings.Split(strings.Trim(line, "| "), "|")
		if len(cells) != 2 {
			faults = append(faults, fmt.Errorf("line %d has %d cells instead of two", i+1, len(cells)))
			continue
		}
		name, reason := strings.Trim(cells[0], " `"), strings.TrimSpace(cells[1])
		if name == "" || reason == "" || known[name] != "" {
			faults = append(faults, fmt.Errorf("line %d names no test, no reason, or a test again", i+1))
			continue
		}
		known[name] = reason
	}
	return known, errors.Join(faults...)
}
