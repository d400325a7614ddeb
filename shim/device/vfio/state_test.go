package vfio

import (
	"testing"

	"github.com/containerd/errdefs"
)

func TestTransitions(t *testing.T) {
	for _, test := range []struct {
		from state
		e    event
		to   state
		ok   bool
	}{
		{stateReserved, eventAdd, stateAdded, true},
		{stateReserved, eventRemove, stateRemoving, true},
		{stateReserved, eventRemoved, stateReserved, false},
		{stateAdded, eventAdd, stateAdded, true},
		{stateAdded, eventRemove, stateRemoving, true},
		{stateAdded, eventRemoved, stateAdded, false},
		{stateRemoving, eventAdd, stateRemoving, false},
		{stateRemoving, eventRemove, stateRemoving, true},
		{stateRemoving, eventRemoved, stateRemoved, true},
		{stateRemoved, eventAdd, stateRemoved, false},
		{stateRemoved, eventRemove, stateRemoving, true},
		{stateRemoved, eventRemoved, stateRemoved, false},
	} {
		to, err := test.from.next(test.e)
		if to != test.to || (err == nil) != test.ok || err != nil && !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%s, %s: %s, %v", test.from, test.e, to, err)
		}
	}
}

func TestParseBARs(t *testing.T) {
	const unused = "0x0000000000000000 0x0000000000000000 0x0000000000000000\n"
	for name, test := range map[string]struct {
		text string
		want int
		ok   bool
	}{
		"empty":             {"", 0, true},
		"one":               {"0x00000000fe000000 0x00000000fe003fff 0x0000000000140204\n" + unused, 1, true},
		"at zero":           {"0x0 0x3fff 0x140204\n", 1, true},
		"the rom is no BAR": {unused + unused + unused + unused + unused + unused + "0x1000 0x1fff 0x46200\n", 0, true},
		"words":             {"0x1 0x2\n", 0, false},
		"no number":         {"0x1 0x2 flags\n", 0, false},
		"backwards":         {"0x2000 0x1000 0x140204\n", 0, false},
		"no power of two":   {"0x1000 0x3fff 0x140204\n", 0, false},
		"everything":        {"0x0 0xffffffffffffffff 0x140204\n", 0, false},
	} {
		bars, err := parseBARs(test.text)
		if len(bars) != test.want || (err == nil) != test.ok {
			t.Errorf("%s: %v, %v", name, bars, err)
		}
	}
}

func TestCompareAddresses(t *testing.T) {
	if compareAddresses("10000:01:00.0", "ffff:02:00.0") <= 0 || compareAddresses("0000:01:00.0", "0000:01:00.1") >= 0 {
		t.Error("addresses are not ordered as numbers")
	}
}
