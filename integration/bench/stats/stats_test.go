package stats

import "testing"

func TestMedian(t *testing.T) {
	for name, tc := range map[string]struct {
		list []float64
		want float64
	}{
		"one":      {[]float64{7}, 7},
		"odd":      {[]float64{9, 1, 2}, 2},
		"even":     {[]float64{8, 1, 4, 2}, 3},
		"the same": {[]float64{5, 5}, 5},
	} {
		if got := Median(tc.list); got != tc.want {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
}
