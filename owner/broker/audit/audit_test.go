package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestRecord(t *testing.T) {
	var out bytes.Buffer
	l := New(&out)
	var group sync.WaitGroup
	for range 20 {
		group.Go(func() {
			err := l.Record(Record{Time: time.Unix(1000, 0).UTC(), Event: EventRelease, Session: SessionID("cookie"), Decision: Refused, Reason: "a\nb", Resource: "kbs:///a/b/c"})
			if err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	if len(lines) != 20 {
		t.Fatalf("%d lines", len(lines))
	}
	for _, line := range lines {
		var r Record
		if err := json.Unmarshal([]byte(line), &r); err != nil || r.Reason != "a\nb" || r.Decision != Refused {
			t.Errorf("%q: %v", line, err)
		}
		if strings.Contains(line, "cookie") {
			t.Errorf("session's name is shown: %s", line)
		}
	}
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, errors.New("disk full") }

func TestRecordFails(t *testing.T) {
	if err := New(brokenWriter{}).Record(Record{}); err == nil {
		t.Error("a lost record went unnoticed")
	}
}

func TestDigests(t *testing.T) {
	if SessionID("a") == SessionID("b") || len(SessionID("a")) != 16 {
		t.Errorf("session %s", SessionID("a"))
	}
	if d := ClaimsDigest([]byte("a")); !strings.HasPrefix(d, "sha256:") || d == ClaimsDigest([]byte("b")) {
		t.Errorf("digest %s", d)
	}
}
