// Package metrics counts what a broker does, by the names that Trustee's broker uses, so that its dashboards and alerts work with ours.
package metrics

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Metrics holds the counters of one broker. A nil *Metrics counts nothing.
type Metrics struct {
	registry *prometheus.Registry

	requests, limited         prometheus.Counter
	duration, received, sent  prometheus.Histogram
	active                    prometheus.Gauge
	reads, writes, deletes    *prometheus.CounterVec // by resource_path
	evaluations, approvals    prometheus.Counter
	violations, policyErrors  prometheus.Counter
	attests, attestErrors     prometheus.Counter
	attested, attestFailures  *prometheus.CounterVec // by tee_type
	auths, authOK, authErrors prometheus.Counter
}

// New returns Metrics. build is the broker's version.
func New(build string) *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry()}
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
		m.registry.MustRegister(c)
		return c
	}
	vector := func(name, help, label string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
		m.registry.MustRegister(c)
		return c
	}
	histogram := func(name, help string, buckets []float64) prometheus.Histogram {
		h := prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets})
		m.registry.MustRegister(h)
		return h
	}
	sizes := prometheus.ExponentialBuckets(32, 4, 5)
	m.requests = counter("kbs_http_requests_total", "HTTP requests.")
	m.limited = counter("kbs_http_rate_limited_total", "HTTP requests that were turned away because their peer sent too many.")
	m.duration = histogram("kbs_http_request_duration_seconds", "Time that HTTP requests took.", []float64{.0005, .001, .005, .01, .05, .5, 1})
	m.received = histogram("kbs_http_request_size_bytes", "Sizes of HTTP request bodies.", sizes)
	m.sent = histogram("kbs_http_response_size_bytes", "Sizes of HTTP response bodies.", sizes)
	m.active = prometheus.NewGauge(prometheus.GaugeOpts{Name: "kbs_http_active_connections", Help: "HTTP requests that are being worked on."})
	m.reads = vector("kbs_resource_reads_total", "Resources released to guests.", "resource_path")
	m.writes = vector("kbs_resource_writes_total", "Resources created or replaced.", "resource_path")
	m.deletes = vector("kbs_resource_deletes_total", "Resources deleted.", "resource_path")
	m.evaluations = counter("kbs_policy_evaluations_total", "Evaluations of the resource policy.")
	m.approvals = counter("kbs_policy_approvals_total", "Requests that the resource policy allowed.")
	m.violations = counter("kbs_policy_violations_total", "Requests that the resource policy denied.")
	m.policyErrors = counter("kbs_policy_errors_total", "Evaluations of the resource policy that failed.")
	m.attests = counter("kbs_attestation_requests_total", "Attestation requests.")
	m.attested = vector("kbs_attestation_successes_total", "Successful attestations.", "tee_type")
	m.attestFailures = vector("kbs_attestation_failures_total", "Attestations whose evidence was refused.", "tee_type")
	m.attestErrors = counter("kbs_attestation_errors_total", "Attestation requests that were malformed or without a session.")
	m.auths = counter("kbs_auth_requests_total", "Authentication requests.")
	m.authOK = counter("kbs_auth_successes_total", "Challenges sent.")
	m.authErrors = counter("kbs_auth_errors_total", "Authentication requests that were refused.")
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "kbs_build_info", Help: "Always 1; the labels say which broker this is.",
		ConstLabels: prometheus.Labels{"version": build, "git_hash": "", "build_date": ""},
	})
	info.Set(1)
	m.registry.MustRegister(m.active, info)
	return m
}

// Handler serves the metrics in Prometheus's text format.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4})
}

// Request counts one HTTP request around serve.
func (m *Metrics) Request(w http.ResponseWriter, r *http.Request, serve func(http.ResponseWriter, *http.Request)) {
	if m == nil {
		serve(w, r)
		return
	}
	start := time.Now()
	m.requests.Inc()
	m.active.Inc()
	defer m.active.Dec()
	counted := &countingWriter{ResponseWriter: w}
	serve(counted, r)
	m.duration.Observe(time.Since(start).Seconds())
	m.received.Observe(float64(max(0, r.ContentLength)))
	m.sent.Observe(float64(counted.bytes))
}

// Limited counts a request that was turned away.
func (m *Metrics) Limited() {
	if m != nil {
		m.limited.Inc()
	}
}

// Auth counts an authentication request; err is what came of it.
func (m *Metrics) Auth(err error) {
	if m == nil {
		return
	}
	m.auths.Inc()
	if err == nil {
		m.authOK.Inc()
	} else {
		m.authErrors.Inc()
	}
}

// Attest counts an attestation request; tee is empty where it had no session.
func (m *Metrics) Attest(tee string, err error) {
	if m == nil {
		return
	}
	m.attests.Inc()
	switch {
	case err == nil:
		m.attested.WithLabelValues(tee).Inc()
	case tee == "":
		m.attestErrors.Inc()
	default:
		m.attestFailures.WithLabelValues(tee).Inc()
	}
}

// Policy counts an evaluation of the resource policy.
func (m *Metrics) Policy(allowed bool, err error) {
	if m == nil {
		return
	}
	m.evaluations.Inc()
	switch {
	case err != nil:
		m.policyErrors.Inc()
	case allowed:
		m.approvals.Inc()
	default:
		m.violations.Inc()
	}
}

// Read, Written and Deleted count what happened to a resource that exists: names that peers invent would grow the metrics without end.
func (m *Metrics) Read(path string) {
	if m != nil {
		m.reads.WithLabelValues(path).Inc()
	}
}

// Written counts a resource that was created or replaced.
func (m *Metrics) Written(path string) {
	if m != nil {
		m.writes.WithLabelValues(path).Inc()
	}
}

// Deleted counts a resource that was deleted.
func (m *Metrics) Deleted(path string) {
	if m != nil {
		m.deletes.WithLabelValues(path).Inc()
	}
}

// countingWriter counts the bytes of an answer.
type countingWriter struct {
	http.ResponseWriter
	bytes int64
}

// Write implements http.ResponseWriter.
func (w *countingWriter) Write(b []byte) (int, error) {
	n, err := w.ResponseWriter.Write(b)
	w.bytes += int64(n)
	return n, err
}

// Unwrap lets http.ResponseController and http.MaxBytesReader reach the connection.
func (w *countingWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
