package image

import (
	"testing"
	"time"
)

func TestMeter(t *testing.T) {
	var m meter
	if got := m.rate(10*time.Millisecond, 1<<30); got != 0 {
		t.Errorf("rate after no time: %d", got)
	}
	var count int64
	at := time.Duration(0)
	for range 20 {
		at += 500 * time.Millisecond
		count += 50
		if got := m.rate(at, count); got < 99 || got > 100 {
			t.Errorf("steady rate at %s: %d, want 100", at, got)
		}
	}
	if got := m.rate(at+time.Millisecond, count+1<<20); got < 99 || got > 100 {
		t.Errorf("rate jumps within a step: %d", got)
	}
	at += 2 * time.Second
	if got := m.rate(at, count); got < 30 || got > 45 {
		t.Errorf("rate after a stall of %s: %d, want about a third of 100", meterMemory, got)
	}
	if got := m.rate(at+time.Minute, count); got != 0 {
		t.Errorf("rate after a long stall: %d", got)
	}
}
