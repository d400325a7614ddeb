// Package metrics turns what shims report and publish into Prometheus metrics: one exporter for a node, whatever the number
// of its pods. Counters and histograms follow the events of containerd, so that a pod that lives shorter than the time
// between two scrapes is counted; gauges are asked for at each scrape.
//
// Figures that a guest reports are bounded and hold no label of its choice. Nothing may trust them for a decision.
package metrics
