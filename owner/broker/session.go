package broker

import (
	"container/list"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"sync"
	"time"

	"github.com/coffer-project/coffer/proto/kbs"
)

type sessionState int

const (
	challenged sessionState = iota
	attesting
	attested
)

// session is one guest's way through the protocol. Its fields are guarded by the table's lock.
type session struct {
	id      string
	tee     kbs.TEE
	nonce   string
	state   sessionState
	expires time.Time
	token   string // in state attested
}

// sessions holds the living sessions, oldest first. All live equally long, so the order is also that of their ends.
type sessions struct {
	limit    int
	lifetime time.Duration
	now      func() time.Time

	mu    sync.Mutex
	order *list.List
	byID  map[string]*list.Element
}

func newSessions(limit int, lifetime time.Duration, now func() time.Time) *sessions {
	return &sessions{limit: limit, lifetime: lifetime, now: now, order: list.New(), byID: map[string]*list.Element{}}
}

// begin makes a session with a fresh name and nonce. Where the table is full, the oldest session that has not attested makes room; where
// all have attested, ok is false.
func (t *sessions) begin(tee kbs.TEE) (s session, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.dropExpired()
	if t.order.Len() >= t.limit && !t.dropUnattested() {
		return session{}, false
	}
	nonce := make([]byte, 32)
	rand.Read(nonce)
	s = session{id: newUUID(), tee: tee, nonce: base64.StdEncoding.EncodeToString(nonce), expires: t.now().Add(t.lifetime)}
	kept := s
	t.byID[s.id] = t.order.PushBack(&kept)
	return s, true
}

// claim moves a challenged session on to attesting and returns it. A nonce is good for one attempt, also when two arrive at once.
func (t *sessions) claim(id string) (session, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.find(id)
	if s == nil {
		return session{}, refuse(kbs.KindAttestation, "session is unknown or has expired: authenticate again")
	}
	if s.state != challenged {
		return session{}, refuse(kbs.KindAttestation, "session has been used for an attestation already: authenticate again")
	}
	s.state = attesting
	return *s, nil
}

// finish keeps the token of a good attestation.
func (t *sessions) finish(id, token string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.find(id)
	if s == nil || s.state != attesting {
		return refuse(kbs.KindAttestation, "session ended during the attestation: authenticate again")
	}
	s.state, s.token = attested, token
	return nil
}

// drop ends a session.
func (t *sessions) drop(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if element, ok := t.byID[id]; ok {
		t.remove(element)
	}
}

// token returns the token of an attested session.
func (t *sessions) token(id string) (string, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.find(id)
	if s == nil || s.state != attested {
		return "", false
	}
	return s.token, true
}

func (t *sessions) find(id string) *session {
	element, ok := t.byID[id]
	if !ok {
		return nil
	}
	s := element.Value.(*session)
	if !t.now().Before(s.expires) {
		t.remove(element)
		return nil
	}
	return s
}

func (t *sessions) dropExpired() {
	now := t.now()
	for front := t.order.Front(); front != nil && !now.Before(front.Value.(*session).expires); front = t.order.Front() {
		t.remove(front)
	}
}

func (t *sessions) dropUnattested() bool {
	for element := t.order.Front(); element != nil; element = element.Next() {
		if element.Value.(*session).state == challenged {
			t.remove(element)
			return true
		}
	}
	return false
}

func (t *sessions) remove(element *list.Element) {
	delete(t.byID, element.Value.(*session).id)
	t.order.Remove(element)
}

func newUUID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

func sameNonce(a, b string) bool {
	return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1
}
