package qemu

import (
	"bufio"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"unicode"

	"github.com/coffer-project/coffer/proto/lazyregexp"
)

// maxConsoleLine is where a line is cut. The guest writes what it likes.
const maxConsoleLine = 512

// lines keeps the last lines of a text that is untrusted: without control characters, and each of bounded length.
type lines struct {
	keep int
	// each is called for every line, before it is kept; nil for nothing.
	each func(line string)

	mu    sync.Mutex
	ring  []string
	next  int           // where the next line goes once the ring is full
	count uint64        // of all lines ever
	ended bool          // no line can come any more
	news  chan struct{} // closed when a line comes or the text ends; nil while nobody waits
}

// readFrom takes lines until the text ends.
func (l *lines) readFrom(r io.Reader) {
	reader := bufio.NewReaderSize(r, maxConsoleLine)
	for {
		line, err := reader.ReadSlice('\n')
		l.add(string(line))
		for errors.Is(err, bufio.ErrBufferFull) { // the rest of a line that is too long
			_, err = reader.ReadSlice('\n')
		}
		if err != nil {
			return
		}
	}
}

func (l *lines) add(raw string) {
	line := clean(raw)
	if line == "" {
		return
	}
	if l.each != nil {
		l.each(line)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.count++
	l.wake()
	if len(l.ring) < l.keep {
		l.ring = append(l.ring, line)
		return
	}
	l.ring[l.next] = line
	l.next = (l.next + 1) % l.keep
}

// end says that no line can come any more.
func (l *lines) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
	l.wake()
}

// wake lets those who wait look again. The lock is held.
func (l *lines) wake() {
	if l.news != nil {
		close(l.news)
		l.news = nil
	}
}

// from is vm.Instance's ConsoleFrom.
func (l *lines) from(ctx context.Context, from uint64) ([]string, uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.count <= from {
		if l.ended {
			return nil, l.count, io.EOF
		}
		if l.news == nil {
			l.news = make(chan struct{})
		}
		news := l.news
		l.mu.Unlock()
		select {
		case <-news:
		case <-ctx.Done():
		}
		l.mu.Lock()
		if ctx.Err() != nil && l.count <= from {
			return nil, l.count, ctx.Err()
		}
	}
	kept := l.kept()
	fresh := min(l.count-from, uint64(len(kept)))
	return kept[uint64(len(kept))-fresh:], l.count, nil
}

// last returns at most n lines, oldest first.
func (l *lines) last(n int) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := l.kept()
	return all[max(0, len(all)-n):]
}

// kept are the lines that there still are, oldest first. The lock is held.
func (l *lines) kept() []string {
	return append(append(make([]string, 0, len(l.ring)), l.ring[l.next:]...), l.ring[:l.next]...)
}

// noise is what a kernel prints of its registers and stack: the reason of a panic stands before it, and a message has no
// room for both.
var noise = lazyregexp.New(`^\[ *[0-9.]+\] +(\?|<|Code:|Call Trace:|Kernel Offset:|Modules linked in:|---\[|` +
	`(RIP|RSP|RAX|RDX|RBP|R10|R13|FS|CS|CR2|DR0|DR3|CPU|PKRU|Hardware name):|[A-Za-z0-9_.]+\+0x[0-9a-f]+/0x)`)

// telling returns the last n lines that are worth a place in an error message.
func (l *lines) telling(n int) []string {
	all := slices.DeleteFunc(l.last(l.keep), noise.MatchString)
	return all[max(0, len(all)-n):]
}

// clean makes a line fit for a log: no control characters, no terminal escapes, valid UTF-8.
func clean(raw string) string {
	raw = strings.TrimRight(raw, "\r\n")
	raw = strings.ToValidUTF8(raw, "?")
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\t':
			return ' '
		case !unicode.IsPrint(r):
			return -1
		}
		return r
	}, raw)
}

// quote joins lines for an error message, which CRI clients show in one line.
func quote(lines []string) string { return strings.Join(lines, " | ") }
