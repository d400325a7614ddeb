package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/google/pprof/profile"

	"github.com/coffer-project/coffer/integration/bench/chart"
	"github.com/coffer-project/coffer/integration/program"
)

// figures are one measurement.
type figures struct {
	Count     int     `json:"count"`
	PerSecond float64 `json:"per_second"`
	P50       float64 `json:"p50_ms"`
	P99       float64 `json:"p99_ms"`
	// BrokerCPU is the processor time that the broker took for one, in milliseconds; its inverse is what one processor could do.
	BrokerCPU float64 `json:"broker_cpu_ms"`
	// GuestsCPU is what the guests' side of it took on the same machine, the forging of evidence included.
	GuestsCPU float64 `json:"guests_cpu_ms"`
	// CryptoShare is the part of the broker's processor time that went into cryptography, 0 to 1.
	CryptoShare float64 `json:"crypto_share"`
}

// report is what kbs.json holds.
type report struct {
	Processors int     `json:"processors"`
	Guests     int     `json:"guests_at_a_time"`
	Seconds    float64 `json:"seconds"`
	Handshakes figures `json:"handshakes"`
	Reads      figures `json:"resource_reads"`
}

func sumUp(times []time.Duration, elapsed time.Duration, used usage, crypto float64) figures {
	slices.Sort(times)
	n := len(times)
	if n == 0 {
		return figures{}
	}
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	return figures{
		Count: n, PerSecond: float64(n) / elapsed.Seconds(), P50: ms(times[n/2]), P99: ms(times[min(n-1, n*99/100)]),
		BrokerCPU: ms(used.broker) / float64(n), GuestsCPU: ms(used.guests) / float64(n), CryptoShare: crypto,
	}
}

// cryptoShare returns the part of a processor profile's samples that were taken inside cryptographic code.
func cryptoShare(file string) (float64, error) {
	f, err := os.Open(file)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	p, err := profile.Parse(f)
	if err != nil {
		return 0, fmt.Errorf("read the broker's profile: %w", err)
	}
	var all, crypto int64
	for _, sample := range p.Sample {
		value := sample.Value[len(sample.Value)-1]
		all += value
		if slices.ContainsFunc(sample.Location, isCrypto) {
			crypto += value
		}
	}
	if all == 0 {
		return 0, nil
	}
	return float64(crypto) / float64(all), nil
}

// isCrypto reports whether a place is in the algorithms. The record layer of TLS is above them: what it does besides is not counted.
func isCrypto(l *profile.Location) bool {
	for _, line := range l.Line {
		name := line.Function.Name
		if !strings.HasPrefix(name, "crypto/tls.") && (strings.HasPrefix(name, "crypto/") || strings.HasPrefix(name, "math/big.")) {
			return true
		}
	}
	return false
}

func (r *report) print(w io.Writer) {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	defer table.Flush()
	fmt.Fprintln(table, "what\tper second\tp50 ms\tp99 ms\tbroker's cpu ms\tof it crypto\tguests' cpu ms\t")
	for _, f := range []struct {
		name string
		figures
	}{{"handshake", r.Handshakes}, {"resource read", r.Reads}} {
		fmt.Fprintf(table, "%s\t%.0f\t%.1f\t%.1f\t%.2f\t%.0f %%\t%.2f\t\n", f.name, f.PerSecond, f.P50, f.P99, f.BrokerCPU, 100*f.CryptoShare, f.GuestsCPU)
	}
}

func (r *report) write(dir string) error {
	if _, err := program.WriteJSON(dir, "kbs.json", r); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "kbs.svg"), r.chart(), 0o644)
}

func (r *report) chart() []byte {
	c := chart.Bars{
		Title: "Key broker: handshakes of new guests and reads of keys per second (more is better)",
		Note: fmt.Sprintf("%d processors for broker and guests together, %d guests at a time; p99 %.1f and %.1f ms", r.Processors, r.Guests,
			r.Handshakes.P99, r.Reads.P99),
		Unit: "/s",
	}
	for _, g := range []struct {
		name string
		figures
	}{{"handshakes", r.Handshakes}, {"reads", r.Reads}} {
		bars := []chart.Bar{{Name: "measured", Value: g.PerSecond}}
		if g.BrokerCPU > 0 {
			bars = append(bars, chart.Bar{Name: "per broker processor", Value: 1000 / g.BrokerCPU})
		}
		c.Groups = append(c.Groups, chart.Group{Name: g.name, Bars: bars})
	}
	return c.SVG()
}
