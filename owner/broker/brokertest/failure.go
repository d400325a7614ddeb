package brokertest

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/coffer-project/coffer/proto/kbs"
)

// Failure is a way in which the broker fails.
type Failure int

// The failures. They hold for all requests until the next call of Fail, unless they say otherwise.
const (
	FailNothing Failure = iota
	// RefuseAuth, RefuseAttest and RefuseResource answer 401 at that step; RefuseResource does so as a policy would.
	RefuseAuth
	RefuseAttest
	RefuseResource
	// ForgetSessions answers 401 to resources as a restarted broker does.
	ForgetSessions
	// NoSuchResource answers 404 to resources.
	NoSuchResource
	// Garbage answers with noise, GarbageResource and GarbageToken only at that step.
	Garbage
	GarbageResource
	GarbageToken
	// Endless answers with a body that does not end.
	Endless
	// ServerError answers 500; ServerErrorOnce does so to the next request only.
	ServerError
	ServerErrorOnce
	// Slow answers nothing until the next call of Fail.
	Slow
	// HangUp closes the connection without an answer; HangUpOnce does so to the next request only.
	HangUp
	HangUpOnce
	// WrongKey releases 32 other bytes than the stored ones, properly sealed.
	WrongKey
	// Redirect sends the guest to another path.
	Redirect
)

// WrongKeyBytes is what WrongKey releases.
var WrongKeyBytes = []byte(strings.Repeat("W", 32))

// Fail switches to a failure; requests that Slow holds are let go.
func (b *Broker) Fail(f Failure) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.failure = f
	close(b.released)
	b.released = make(chan struct{})
}

func endpointOf(r *http.Request) string {
	switch {
	case r.URL.Path == kbs.PathAuth:
		return "auth"
	case r.URL.Path == kbs.PathAttest:
		return "attest"
	case strings.HasPrefix(r.URL.Path, kbs.PathResource) && r.Method == http.MethodGet:
		return "resource"
	default:
		return "other"
	}
}

func (b *Broker) serve(w http.ResponseWriter, r *http.Request) {
	endpoint := endpointOf(r)
	b.mu.Lock()
	b.requests[endpoint]++
	b.arrived.Broadcast()
	failure, released := b.failure, b.released
	if failure == ServerErrorOnce || failure == HangUpOnce {
		b.failure = FailNothing
	}
	b.mu.Unlock()
	if endpoint == "other" || !b.spoil(w, r, endpoint, failure, released) {
		b.Handler.ServeHTTP(w, r)
	}
}

// spoil answers in the honest broker's place and reports whether it did.
func (b *Broker) spoil(w http.ResponseWriter, r *http.Request, endpoint string, failure Failure, released chan struct{}) bool {
	problem := func(status int, kind, detail string) bool {
		w.Header().Set("Content-Type", kbs.ProblemType)
		w.WriteHeader(status)
		w.Write(kbs.NewProblem(kind, detail).Encode())
		return true
	}
	noise := func() bool {
		w.Header().Add("Set-Cookie", kbs.SessionCookie+"=noise")
		fmt.Fprint(w, "<html><body>It works!</body></html>")
		return true
	}
	switch {
	case failure == RefuseAuth && endpoint == "auth", failure == RefuseAttest && endpoint == "attest":
		return problem(http.StatusUnauthorized, kbs.KindAttestation, "refused by test")
	case failure == RefuseResource && endpoint == "resource":
		return problem(http.StatusUnauthorized, kbs.KindPolicyDeny, "refused by test")
	case failure == ForgetSessions && endpoint == "resource":
		return problem(http.StatusUnauthorized, kbs.KindTokenNotFound, "who are you?")
	case failure == NoSuchResource && endpoint == "resource":
		return problem(http.StatusNotFound, kbs.KindNotFound, "no such resource")
	case failure == Garbage, failure == GarbageResource && endpoint == "resource", failure == GarbageToken && endpoint == "attest":
		return noise()
	case failure == Endless:
		endless(w, r)
		return true
	case failure == ServerError, failure == ServerErrorOnce:
		return problem(http.StatusInternalServerError, kbs.KindPluginInternal, "broken by test")
	case failure == Slow:
		select {
		case <-released:
		case <-r.Context().Done():
		}
		return problem(http.StatusServiceUnavailable, kbs.KindPluginInternal, "slow by test")
	case failure == HangUp, failure == HangUpOnce:
		panic(http.ErrAbortHandler)
	case failure == Redirect:
		http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
		return true
	case failure == WrongKey && endpoint == "resource":
		b.releaseWrong(w, r)
		return true
	}
	return false
}

func endless(w http.ResponseWriter, r *http.Request) {
	chunk := []byte(strings.Repeat(" ", 32<<10))
	for r.Context().Err() == nil {
		if _, err := w.Write(chunk); err != nil {
			return
		}
	}
}

// releaseWrong asks the honest broker for a resource that holds the wrong bytes, in the guest's name.
func (b *Broker) releaseWrong(w http.ResponseWriter, r *http.Request) {
	wrong := kbs.ResourceURI{Repository: "brokertest", Type: "wrong", Tag: "key"}
	if err := b.store.Put(r.Context(), wrong, WrongKeyBytes); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	ask := r.Clone(r.Context())
	ask.URL.Path = kbs.PathResource + "/" + wrong.Path()
	answer := httptest.NewRecorder()
	b.Handler.ServeHTTP(answer, ask)
	w.WriteHeader(answer.Code)
	w.Write(answer.Body.Bytes())
}
