// Package reference keeps the values that an owner trusts (launch measurements, firmware versions), as Trustee's reference value provider
// does: each has a name and an end, after which it is trusted no more.
package reference

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/owner/appraise"
	"github.com/coffer-project/coffer/owner/broker/store"
)

// maxName bounds names in bytes: they become file names.
const maxName = 128

// version is that of Entry.
const version = "0.1.0"

// lifetimeMonths is how long a value is trusted after it was handed in, as in Trustee.
const lifetimeMonths = 12

// Entry is one reference value.
type Entry struct {
	Version string `json:"version"`
	Name    string `json:"name"`
	// Expiration is when the value stops being trusted.
	Expiration time.Time `json:"expiration"`
	// Value is a string, number or boolean, or a list of them of which any is trusted.
	Value any `json:"value"`
}

// Values implements appraise.References over a store. Calls may be concurrent.
type Values struct {
	store store.Store
	now   func() time.Time
}

// New returns the values that s keeps. now is the clock.
func New(s store.Store, now func() time.Time) *Values { return &Values{store: s, now: now} }

// Reference implements appraise.References. Values that have ended are not trusted.
func (v *Values) Reference(ctx context.Context, name string) (any, error) {
	e, err := v.Get(ctx, name)
	if errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err) { // no value can have a name that Register refuses
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if !v.now().Before(e.Expiration) {
		return nil, nil
	}
	return e.Value, nil
}

// Get returns a value, also one that has ended. NotFound where there is none.
func (v *Values) Get(ctx context.Context, name string) (*Entry, error) {
	key, err := storeName(name)
	if err != nil {
		return nil, err
	}
	raw, err := v.store.Get(ctx, key)
	if errdefs.IsNotFound(err) {
		return nil, fmt.Errorf("reference value %q: %w", name, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("read reference value %q: %w", name, err)
	}
	var e Entry
	if err := json.Unmarshal(raw, &e); err != nil || e.Name != name {
		return nil, fmt.Errorf("stored reference value %q is damaged; register it again: %w", name, errdefs.ErrFailedPrecondition)
	}
	return &e, nil
}

// Register takes values in, replacing those of the same names: what appraise.ParseValues reads. It returns their names in order. Faults
// of the document are InvalidArgument and nothing is kept.
func (v *Values) Register(ctx context.Context, raw []byte) ([]string, error) {
	values, err := appraise.ParseValues(raw)
	if err != nil {
		return nil, err
	}
	names := slices.Sorted(maps.Keys(values))
	for _, name := range names {
		if _, err := storeName(name); err != nil {
			return nil, err
		}
	}
	end := v.now().UTC().Truncate(time.Second).AddDate(0, lifetimeMonths, 0)
	var errs []error
	for _, name := range names {
		errs = append(errs, v.put(ctx, Entry{Version: version, Name: name, Expiration: end, Value: values[name]}))
	}
	return names, errors.Join(errs...)
}

func (v *Values) put(ctx context.Context, e Entry) error {
	key, err := storeName(e.Name)
	if err != nil {
		return err
	}
	encoded, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("encode reference value %q: %w", e.Name, err)
	}
	if err := v.store.Put(ctx, key, encoded); err != nil {
		return fmt.Errorf("keep reference value %q: %w", e.Name, err)
	}
	return nil
}

// Delete removes a value. NotFound where there is none.
func (v *Values) Delete(ctx context.Context, name string) error {
	key, err := storeName(name)
	if err != nil {
		return err
	}
	return v.store.Delete(ctx, key)
}

// List returns all values in the order of their names.
func (v *Values) List(ctx context.Context) ([]Entry, error) {
	keys, err := v.store.List(ctx, store.KindReference)
	if err != nil {
		return nil, fmt.Errorf("list reference values: %w", err)
	}
	entries := []Entry{}
	for _, key := range keys {
		name, err := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(strings.TrimPrefix(key, store.KindReference+"/"), "n"))
		if err != nil {
			continue // not ours
		}
		e, err := v.Get(ctx, string(name))
		if errdefs.IsNotFound(err) {
			continue // deleted meanwhile
		}
		if err != nil {
			return nil, err
		}
		entries = append(entries, *e)
	}
	slices.SortFunc(entries, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
	return entries, nil
}

// storeName hides the name in base64url: Trustee's names may have slashes and spaces.
func storeName(name string) (string, error) {
	if name == "" || len(name) > maxName {
		return "", fmt.Errorf("reference value name has %d bytes, want 1 to %d: %w", len(name), maxName, errdefs.ErrInvalidArgument)
	}
	return store.KindReference + "/n" + base64.RawURLEncoding.EncodeToString([]byte(name)), nil
}
