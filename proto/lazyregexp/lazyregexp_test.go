package lazyregexp

import (
	"slices"
	"testing"
)

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

func TestFindStringSubmatch(t *testing.T) {
	t.Parallel()
	r := New("^/([a-z]+)/([0-9]*)$")
	for s, want := range map[string][]string{"/ab/12": {"/ab/12", "ab", "12"}, "/ab/": {"/ab/", "ab", ""}, "/ab/c": nil} {
		if got := r.FindStringSubmatch(s); !slices.Equal(got, want) {
			t.Errorf("FindStringSubmatch(%q) = %q, want %q", s, got, want)
		}
	}
}
