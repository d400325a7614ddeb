package image

import (
	"math"
	"time"
)

const (
	// meterStep is the shortest time that a rate is measured over.
	meterStep = 250 * time.Millisecond
	// meterMemory is how far back a rate looks: what was before it counts for about a third.
	meterMemory = 2 * time.Second
)

// meter turns a count that grows into a rate, smoothed over the recent past.
type meter struct {
	at    time.Duration // since the start, of the last measurement
	count int64
	value float64
	begun bool
}

// rate returns what the count grows by in a second. It may be asked at any time; at is the time since the start.
func (m *meter) rate(at time.Duration, count int64) int64 {
	if step := at - m.at; step >= meterStep {
		fresh := float64(count-m.count) / step.Seconds()
		keep := math.Exp(-step.Seconds() / meterMemory.Seconds())
		if !m.begun {
			keep, m.begun = 0, true
		}
		m.value = keep*m.value + (1-keep)*fresh
		m.at, m.count = at, count
	}
	return int64(m.value)
}
