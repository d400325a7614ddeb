package main

import (
	"fmt"
	"strings"
)

// verdict shows what the tests in the machine say, line by line, and keeps the last line.
type verdict struct {
	partial string
	line    string
}

// Write implements io.Writer.
func (v *verdict) Write(p []byte) (int, error) {
	v.partial += string(p)
	for {
		line, rest, whole := strings.Cut(v.partial, "\n")
		if !whole {
			return len(p), nil
		}
		v.partial, v.line = rest, strings.TrimRight(line, "\r")
		fmt.Println("  " + v.line)
	}
}

func (v *verdict) last() string { return v.line }
