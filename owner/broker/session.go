package broker

import (
	"container/list"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/proto/kbs"
)

// SessionKeySize is the size of Options.SessionKey in bytes.
const SessionKeySize = 32

const (
	nonceSize     = 32
	sessionIDSize = 16
	maxTEE        = 32 // bytes of a TEE's name
)

// SessionStore keeps the tokens of attested sessions where all brokers behind one address find them.
type SessionStore interface {
	// Create keeps a token. A session that has one is AlreadyExists.
	Create(ctx context.Context, id string, expires time.Time, token string) error
	// Token returns a token. NotFound where there is none.
	Token(ctx context.Context, id string, expires time.Time) (string, error)
}

// session is what a challenge says. It travels in the cookie, sealed with the session key, so any broker with that key can go on with it
// and a flood of challenges costs no memory.
type session struct {
	id      string // hex
	tee     kbs.TEE
	nonce   string // base64
	expires time.Time
}

// sessions makes and reads cookies, and remembers which sessions were used and the tokens of the attested ones.
type sessions struct {
	aead     cipher.AEAD
	limit    int
	lifetime time.Duration
	now      func() time.Time
	shared   SessionStore // may be nil

	mu    sync.Mutex
	order *list.List // of *usedSession, oldest first
	byID  map[string]*list.Element
}

// usedSession is a session whose nonce has been presented.
type usedSession struct {
	id      string
	expires time.Time
	token   string // empty until attested
}

func newSessions(key []byte, limit int, lifetime time.Duration, now func() time.Time, shared SessionStore) (*sessions, error) {
	if len(key) != SessionKeySize {
		return nil, fmt.Errorf("session key has %d bytes, want %d: %w", len(key), SessionKeySize, errdefs.ErrInvalidArgument)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("session key: %w", err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("session key: %w", err)
	}
	return &sessions{
		aead: aead, limit: limit, lifetime: lifetime, now: now, shared: shared,
		order: list.New(), byID: map[string]*list.Element{},
	}, nil
}

// begin makes a session with a fresh name and nonce, and its cookie.
func (t *sessions) begin(tee kbs.TEE) (session, string) {
	random := make([]byte, sessionIDSize+nonceSize)
	rand.Read(random)
	expires := t.now().Add(t.lifetime).Truncate(time.Second)
	plain := binary.BigEndian.AppendUint64(nil, uint64(expires.Unix()))
	plain = append(plain, random...)
	plain = append(plain, tee...)
	sealed := make([]byte, t.aead.NonceSize(), t.aead.NonceSize()+len(plain)+t.aead.Overhead())
	rand.Read(sealed)
	sealed = t.aead.Seal(sealed, sealed, plain, []byte(kbs.SessionCookie))
	return decodeSession(plain), base64.RawURLEncoding.EncodeToString(sealed)
}

func decodeSession(plain []byte) session {
	expires, rest := binary.BigEndian.Uint64(plain), plain[8:]
	return session{
		id:      hex.EncodeToString(rest[:sessionIDSize]),
		nonce:   base64.StdEncoding.EncodeToString(rest[sessionIDSize : sessionIDSize+nonceSize]),
		tee:     kbs.TEE(rest[sessionIDSize+nonceSize:]),
		expires: time.Unix(int64(expires), 0),
	}
}

// open reads a cookie. ok is false for one that no broker with this key made, or whose time is over.
func (t *sessions) open(cookie string) (s session, ok bool) {
	size := t.aead.NonceSize() + 8 + sessionIDSize + nonceSize + t.aead.Overhead()
	if len(cookie) > base64.RawURLEncoding.EncodedLen(size+maxTEE) {
		return session{}, false
	}
	sealed, err := base64.RawURLEncoding.DecodeString(cookie)
	if err != nil || len(sealed) < size {
		return session{}, false
	}
	plain, err := t.aead.Open(nil, sealed[:t.aead.NonceSize()], sealed[t.aead.NonceSize():], []byte(kbs.SessionCookie))
	if err != nil {
		return session{}, false
	}
	s = decodeSession(plain)
	return s, t.now().Before(s.expires)
}

// claim opens a session for its one attestation. A nonce is good for one attempt at each broker, also when two arrive at once.
func (t *sessions) claim(cookie string) (session, error) {
	s, ok := t.open(cookie)
	if !ok {
		return session{}, refuse(kbs.KindAttestation, "session is unknown or has expired: authenticate again")
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.find(s.id) != nil {
		return session{}, refuse(kbs.KindAttestation, "session has been used for an attestation already: authenticate again")
	}
	t.keep(&usedSession{id: s.id, expires: s.expires})
	return s, nil
}

// finish keeps the token of a good attestation.
func (t *sessions) finish(ctx context.Context, s session, token string) error {
	if t.shared != nil {
		err := t.shared.Create(ctx, s.id, s.expires, token)
		if errdefs.IsAlreadyExists(err) {
			return refuse(kbs.KindAttestation, "session has been used for an attestation already: authenticate again")
		}
		if err != nil {
			return broken("the session could not be stored", err)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if used := t.find(s.id); used != nil {
		used.token = token
		return nil
	}
	t.keep(&usedSession{id: s.id, expires: s.expires, token: token})
	return nil
}

// token returns the token of an attested session, NotFound where there is none.
func (t *sessions) token(ctx context.Context, cookie string) (string, error) {
	s, ok := t.open(cookie)
	if !ok {
		return "", errdefs.ErrNotFound
	}
	t.mu.Lock()
	used := t.find(s.id)
	token := ""
	if used != nil {
		token = used.token
	}
	t.mu.Unlock()
	switch {
	case token != "":
		return token, nil
	case t.shared == nil:
		return "", errdefs.ErrNotFound
	}
	return t.shared.Token(ctx, s.id, s.expires)
}

// keep remembers a used session and forgets ended ones, and the oldest where there are too many: its guest attests again, and its nonce
// could be used again, for the same key only.
func (t *sessions) keep(s *usedSession) {
	now := t.now()
	for front := t.order.Front(); front != nil; front = t.order.Front() {
		if now.Before(front.Value.(*usedSession).expires) && t.order.Len() < t.limit {
			break
		}
		t.remove(front)
	}
	t.byID[s.id] = t.order.PushBack(s)
}

func (t *sessions) find(id string) *usedSession {
	if element, ok := t.byID[id]; ok {
		return element.Value.(*usedSession)
	}
	return nil
}

func (t *sessions) remove(element *list.Element) {
	delete(t.byID, element.Value.(*usedSession).id)
	t.order.Remove(element)
}

func sameNonce(a, b string) bool {
	return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1
}
