package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
)

func TestReport(t *testing.T) {
	r := newReport([]string{baseline, "other"})
	for _, whole := range []float64{30, 10, 20} {
		r.add(baseline, sample{"run_pod_sandbox": whole, "host setup": 1, "guest kernel": 5})
		r.add("other", sample{"run_pod_sandbox": 2 * whole, "host setup": 2, "guest kernel": 5})
	}
	if got := r.Phases[baseline]["run_pod_sandbox"]; got != (figures{Median: 20, Min: 10, Max: 30}) || r.Pods != 3 {
		t.Errorf("%d pods, %+v", r.Pods, got)
	}
	var table bytes.Buffer
	r.print(&table)
	if got := strings.Join(strings.Fields(table.String()), " "); !strings.Contains(got, "other run_pod_sandbox 40 20 60 2.00") {
		t.Errorf("table: %s", got)
	}
	decoder := xml.NewDecoder(bytes.NewReader(r.chart()))
	for {
		if _, err := decoder.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
}
