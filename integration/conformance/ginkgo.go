package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
)

// outcome is how a specification ended.
type outcome string

// The outcomes. Everything that is neither passed nor skipped has failed: panics, interrupts and time-outs too.
const (
	passed  outcome = "pass"
	failed  outcome = "fail"
	skipped outcome = "skip"
)

// spec is one specification of the suite.
type spec struct {
	Name    string        `json:"spec"`
	Outcome outcome       `json:"outcome"`
	Message string        `json:"message,omitempty"`
	Time    time.Duration `json:"-"`
	Seconds float64       `json:"seconds"`
}

// ginkgoReport is the part of ginkgo's JSON report (types.Report, version 2) that is of use here.
type ginkgoReport struct {
	SpecialSuiteFailureReasons []string
	SpecReports                []struct {
		ContainerHierarchyTexts    []string
		LeafNodeType, LeafNodeText string
		State                      string
		RunTime                    time.Duration
		Failure                    struct {
			Message, ForwardedPanic string
		}
	}
}

// readReport reads the specifications out of a report file. A suite that could not be set up is an error.
func readReport(path string) ([]spec, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return parseReport(content)
}

func parseReport(content []byte) ([]spec, error) {
	var reports []ginkgoReport
	if err := json.Unmarshal(content, &reports); err != nil {
		return nil, fmt.Errorf("read ginkgo's report: %w", err)
	}
	var specs []spec
	for _, report := range reports {
		for _, s := range report.SpecReports {
			message := strings.TrimSpace(s.Failure.Message + " " + s.Failure.ForwardedPanic)
			if s.LeafNodeType != "It" {
				if s.State != "passed" {
					return nil, fmt.Errorf("the suite's own %s %s: %s", s.LeafNodeType, s.State, message)
				}
				continue
			}
			o := failed
			switch s.State {
			case "passed":
				o = passed
			case "skipped", "pending":
				o = skipped
			}
			name := strings.Join(append(s.ContainerHierarchyTexts, s.LeafNodeText), " ")
			specs = append(specs, spec{Name: plain(name), Outcome: o, Message: message, Time: s.RunTime, Seconds: s.RunTime.Seconds()})
		}
	}
	if len(specs) == 0 {
		return nil, errors.New("ginkgo's report holds no specification")
	}
	return specs, nil
}

// specPrefix begins every name; it says nothing.
const specPrefix = "[k8s.io] "

func plain(name string) string { return strings.TrimPrefix(name, specPrefix) }
