// Package lazyregexp compiles regular expressions when they are first used. The guest's start is measured in
// milliseconds, and dozens of patterns compiled before main cost a tenth of a second of it under emulation. A pod takes three
// processes of the shim, two of which need no pattern.
package lazyregexp

import (
	"os"
	"regexp"
	"strings"
	"sync"
)

// Regexp is a regular expression that is compiled once, on demand.
type Regexp struct {
	compile func() *regexp.Regexp
}

// New returns a Regexp for a constant pattern. A pattern that does not compile panics at its first use; in tests it
// panics at once, so that none gets further than that.
func New(pattern string) *Regexp {
	r := &Regexp{compile: sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(pattern) })}
	if len(os.Args) > 0 && strings.HasSuffix(os.Args[0], ".test") {
		r.compile()
	}
	return r
}

// MatchString reports whether the expression matches s.
func (r *Regexp) MatchString(s string) bool { return r.compile().MatchString(s) }

// FindStringSubmatch returns the leftmost match in s and those of its groups; nil where there is none.
func (r *Regexp) FindStringSubmatch(s string) []string { return r.compile().FindStringSubmatch(s) }
