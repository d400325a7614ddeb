package broker

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/owner/broker/admin"
	"github.com/coffer-project/coffer/owner/broker/audit"
	"github.com/coffer-project/coffer/owner/broker/reference"
	"github.com/coffer-project/coffer/proto/kbs"
)

// ReferenceAdmin changes the reference values. *reference.Values implements it.
type ReferenceAdmin interface {
	Register(ctx context.Context, document []byte) ([]string, error)
	Get(ctx context.Context, name string) (*reference.Entry, error)
	Delete(ctx context.Context, name string) error
	List(ctx context.Context) ([]reference.Entry, error)
}

// registerReferences serves POST of a document of reference values: Trustee's message, or the plain object of names and values.
func (b *Broker) registerReferences(w http.ResponseWriter, r *http.Request) error {
	return b.asAdmin(r, admin.WriteReferences, func(rec *audit.Record) error {
		body, err := readBody(w, r, kbs.MaxReferences)
		if err != nil {
			return err
		}
		names, err := b.References.Register(r.Context(), body)
		rec.Object = clipObject(fmt.Sprint(names))
		if err != nil {
			return adminError("the reference values could not be stored", kbs.KindReference, err)
		}
		return nil
	})
}

// getReference serves GET of one value: its JSON, null where there is none, as in Trustee.
func (b *Broker) getReference(w http.ResponseWriter, r *http.Request) error {
	var value any
	err := b.asAdmin(r, admin.ReadReferences, func(rec *audit.Record) error {
		name := r.PathValue("name")
		rec.Object = clipObject(name)
		e, err := b.References.Get(r.Context(), name)
		if errdefs.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return adminError("the reference value could not be read", kbs.KindReference, err)
		}
		value = e.Value
		return nil
	})
	if err != nil {
		return err
	}
	return sendJSON(w, value)
}

// listReferences serves GET of all values.
func (b *Broker) listReferences(w http.ResponseWriter, r *http.Request) error {
	answer := kbs.ReferenceList{Values: []kbs.ReferenceValue{}}
	err := b.asAdmin(r, admin.ReadReferences, func(rec *audit.Record) error {
		rec.Action, rec.Object = actionList, "reference values"
		entries, err := b.References.List(r.Context())
		if err != nil {
			return broken("the reference values could not be listed", err)
		}
		for _, e := range entries {
			raw, err := json.Marshal(e.Value)
			if err != nil {
				return broken("a reference value could not be encoded", err)
			}
			answer.Values = append(answer.Values, kbs.ReferenceValue{Name: e.Name, Expiration: e.Expiration, Value: raw})
		}
		return nil
	})
	if err != nil {
		return err
	}
	return sendJSON(w, answer)
}

// deleteReference serves DELETE of one value.
func (b *Broker) deleteReference(_ http.ResponseWriter, r *http.Request) error {
	return b.asAdmin(r, admin.WriteReferences, func(rec *audit.Record) error {
		name := r.PathValue("name")
		rec.Object = clipObject(name)
		err := b.References.Delete(r.Context(), name)
		if errdefs.IsNotFound(err) {
			return missing(kbs.KindNotFound, "no such reference value")
		}
		if err != nil {
			return adminError("the reference value could not be deleted", kbs.KindReference, err)
		}
		return nil
	})
}
