package store

import (
	"context"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/proto/kbs"
)

// Resources is the part of a Store that holds resources. It implements the broker's interface.
type Resources struct{ Store Store }

// Get returns a resource. One that does not exist is NotFound.
func (r Resources) Get(ctx context.Context, uri kbs.ResourceURI) ([]byte, error) {
	name, err := resourceName(uri)
	if err != nil {
		return nil, err
	}
	return r.Store.Get(ctx, name)
}

// Put creates or replaces a resource of 1 to kbs.MaxResource bytes.
func (r Resources) Put(ctx context.Context, uri kbs.ResourceURI, data []byte) error {
	name, err := resourceName(uri)
	if err != nil {
		return err
	}
	if len(data) == 0 || len(data) > kbs.MaxResource {
		return fmt.Errorf("resource %s has %d bytes, want 1 to %d: %w", uri.Path(), len(data), kbs.MaxResource, errdefs.ErrInvalidArgument)
	}
	return r.Store.Put(ctx, name, data)
}

// Delete removes a resource. One that does not exist is NotFound.
func (r Resources) Delete(ctx context.Context, uri kbs.ResourceURI) error {
	name, err := resourceName(uri)
	if err != nil {
		return err
	}
	return r.Store.Delete(ctx, name)
}

// List returns the names of all resources in order. Entries that no resource name leads to are left out.
func (r Resources) List(ctx context.Context) ([]kbs.ResourceURI, error) {
	names, err := r.Store.List(ctx, KindResource)
	if err != nil {
		return nil, err
	}
	uris := make([]kbs.ResourceURI, 0, len(names))
	for _, name := range names {
		if uri, err := kbs.ParseResourcePath(strings.TrimPrefix(name, KindResource+"/")); err == nil {
			uris = append(uris, uri)
		}
	}
	return uris, nil
}

func resourceName(uri kbs.ResourceURI) (string, error) {
	if err := uri.Validate(); err != nil {
		return "", err
	}
	return KindResource + "/" + uri.Path(), nil
}
