package lazyregexp

import "testing"

func TestMatchString(t *testing.T) {
	t.Parallel()
	r := New("^[a-z]{1,3}$")
	for s, want := range map[string]bool{"abc": true, "abcd": false, "": false, "A": false} {
		if got := r.MatchString(s); got != want {
			t.Errorf("MatchString(%q) = %v, want %v", s, got, want)
		}
	}
}

func TestBadPatternFailsInTests(t *testing.T) {
	t.Parallel()
	defer func() {
		if recover() == nil {
			t.Error("a pattern that does not compile was taken")
		}
	}()
	New("(")
}
