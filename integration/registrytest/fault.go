package registrytest

import (
	"net/http"
	"time"
)

// Kind of a request's object.
type Kind string

// Kinds. A blob is a config or a layer when an image that was put into the registry says so.
const (
	Manifest  Kind = "manifest"
	Config    Kind = "config"
	LayerBlob Kind = "layer"
	Referrers Kind = "referrers"
	Other     Kind = "other"
)

// Action is how a faulty answer differs from the honest one.
type Action int

// Actions.
const (
	// Status answers with Fault.Status and, where set, a Retry-After header.
	Status Action = iota + 1
	// WrongBlob sends other bytes of the same length.
	WrongBlob
	// FlipByte changes the byte in the middle.
	FlipByte
	// Short declares and sends half of the bytes.
	Short
	// Truncate declares all bytes and breaks the connection after half of those that were asked for.
	Truncate
	// Endless sends the bytes and then zeroes for ever.
	Endless
	// Stall sends half of the bytes and then nothing, until the client gives up.
	Stall
	// Silent accepts the request and never answers, until the client gives up.
	Silent
	// Redirect sends the client in circles.
	Redirect
	// WrongType sends the bytes as Fault.MediaType.
	WrongType
	// Encoded claims a content encoding that was not asked for.
	Encoded
	// NoRange ignores a Range header.
	NoRange
)

// Fault makes the registry misbehave for some requests. The first fault that fits a request is used.
type Fault struct {
	// Kind and Digest choose requests; empty means any.
	Kind   Kind
	Digest string
	Method string
	Action Action
	// Status and RetryAfter are for the action Status.
	Status     int
	RetryAfter time.Duration
	MediaType  string
	// Times is how often the fault is used; 0 means always.
	Times int
}

// Inject adds a fault.
func (r *Registry) Inject(f Fault) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = append(r.faults, &f)
}

// Heal removes all faults.
func (r *Registry) Heal() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = nil
}

// fault returns the fault for a request, or nil.
func (r *Registry) fault(kind Kind, dgst, method string) *Fault {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, f := range r.faults {
		if (f.Kind != "" && f.Kind != kind) || (f.Digest != "" && f.Digest != dgst) || (f.Method != "" && f.Method != method) {
			continue
		}
		if f.Times > 0 {
			if f.Times--; f.Times == 0 {
				r.faults = append(r.faults[:i:i], r.faults[i+1:]...)
			}
		}
		hit := *f
		return &hit
	}
	return nil
}

// waitForClient blocks until the client closes the connection or the registry is closed.
func (r *Registry) waitForClient(req *http.Request) {
	select {
	case <-req.Context().Done():
	case <-r.closed:
	}
}
