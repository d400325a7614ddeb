package sandbox

import (
	"math"
	"testing"
)

func TestMilliCPUs(t *testing.T) {
	for name, tc := range map[string]struct {
		quota, period, shares, want int64
	}{
		"nothing said":    {0, 0, 0, 0},
		"no limit":        {-1, 100_000, 2, 2},
		"half":            {50_000, 100_000, 512, 500},
		"default period":  {250_000, 0, 0, 2500},
		"request larger":  {100_000, 100_000, 4096, 4000},
		"short period":    {20_000, 10_000, 0, 2000},
		"nonsense":        {-5, -5, -5, 0},
		"beyond measures": {math.MaxInt64, 1, math.MaxInt64, 1e9},
	} {
		t.Run(name, func(t *testing.T) {
			if got := milliCPUs(tc.quota, tc.period, tc.shares); got != tc.want {
				t.Errorf("got %d, want %d", got, tc.want)
			}
		})
	}
}
