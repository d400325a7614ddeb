// Package stats sums up what benchmarks measured.
package stats

import "slices"

// Median is the middle of a list, which must not be empty.
func Median(list []float64) float64 {
	list = slices.Sorted(slices.Values(list))
	middle := len(list) / 2
	if len(list)%2 == 1 {
		return list[middle]
	}
	return (list[middle-1] + list[middle]) / 2
}
