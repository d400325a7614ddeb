package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
)

// readDifferences reads the table of specifications that Coffer does not meet.
func readDifferences(path string) (map[string]string, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the known differences: %w", err)
	}
	known, err := parseDifferences(string(content))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return known, nil
}

// parseDifferences reads every row of two cells, specification and reason, that stands in a table of Markdown. The first
// row of a table is its head, the second the line below it.
func parseDifferences(text string) (map[string]string, error) {
	known := map[string]string{}
	var faults []error
	row := 0 // within a table, from 1
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "|") {
			row = 0
			continue
		}
		if row++; row <= 2 {
			continue
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		if len(cells) != 2 {
			faults = append(faults, fmt.Errorf("line %d has %d cells instead of two", i+1, len(cells)))
			continue
		}
		name, reason := strings.TrimSpace(cells[0]), strings.TrimSpace(cells[1])
		switch {
		case name == "" || reason == "":
			faults = append(faults, fmt.Errorf("line %d names no specification or no reason", i+1))
		case known[name] != "":
			faults = append(faults, fmt.Errorf("line %d names %q again", i+1, name))
		default:
			known[name] = reason
		}
	}
	return known, errors.Join(faults...)
}
