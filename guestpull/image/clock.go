package image

import (
	"io"
	"time"
)

// clock counts the time that is spent in reads of r.
type clock struct {
	r     io.Reader
	total time.Duration
	// report is told about each read; nil for clocks whose owner asks.
	report func(time.Duration)
	// inner is what r reads from; its time is not r's.
	inner *clock
}

func (c *clock) Read(p []byte) (int, error) {
	var before time.Duration
	if c.inner != nil {
		before = c.inner.total
	}
	start := time.Now()
	n, err := c.r.Read(p)
	d := time.Since(start)
	c.total += d
	if c.inner != nil {
		d -= c.inner.total - before
	}
	if c.report != nil {
		c.report(d)
	}
	return n, err
}

// add counts time that was spent elsewhere.
func (c *clock) add(d time.Duration) {
	c.total += d
	c.report(d)
}
