package worker

import (
	"bytes"
	"testing"
)

// TestRings: memory goes from layer to layer without what was in it, and none is kept when no layer is left.
func TestRings(t *testing.T) {
	var k rings
	take := func() *ring {
		t.Helper()
		r, err := k.take()
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	give := func(r *ring) {
		t.Helper()
		if err := k.give(r); err != nil {
			t.Fatal(err)
		}
	}
	first, second := take(), take()
	for n := range slots {
		copy(first.block(n), "plaintext of a layer")
	}
	give(first)
	third := take()
	if third != first || !bytes.Equal(third.memory, make([]byte, blockSize*slots)) {
		t.Errorf("the next layer got the memory of the first: %t, which begins with %q", third == first, third.memory[:20])
	}
	if err := k.drop(second); err != nil {
		t.Fatal(err)
	}
	if fourth := take(); fourth == second {
		t.Error("memory that somebody may have was handed out again")
	} else {
		give(fourth)
	}
	give(third)
	if k.users != 0 || k.free != nil {
		t.Errorf("after the last layer there are %d users and %d rings", k.users, len(k.free))
	}
}
