package broker

import (
	"net/http"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/owner/broker/audit"
	"github.com/coffer-project/coffer/proto/kbs"
)

// put serves POST and PUT of a resource: the body is the resource itself.
func (b *Broker) put(w http.ResponseWriter, r *http.Request) error {
	return b.manage(r, func(uri kbs.ResourceURI) error {
		data, err := readBody(w, r, kbs.MaxResource)
		if err != nil {
			return err
		}
		err = b.Store.Put(r.Context(), uri, data)
		if errdefs.IsInvalidArgument(err) {
			return &fault{status: http.StatusBadRequest, kind: kbs.KindPluginInternal, detail: peerText(err)}
		}
		if err != nil {
			return broken("the resource could not be stored", err)
		}
		return nil
	})
}

// delete serves DELETE of a resource.
func (b *Broker) delete(_ http.ResponseWriter, r *http.Request) error {
	return b.manage(r, func(uri kbs.ResourceURI) error {
		err := b.Store.Delete(r.Context(), uri)
		if errdefs.IsNotFound(err) {
			return missing(kbs.KindNotFound, "no resource %s", uri.Path())
		}
		if err != nil {
			return broken("the resource could not be deleted", err)
		}
		return nil
	})
}

// manage runs an admin's change of one resource. The admin is checked before anything else is read.
func (b *Broker) manage(r *http.Request, change func(kbs.ResourceURI) error) error {
	rec := audit.Record{Event: audit.EventAdmin, Action: r.Method}
	if err := b.checkAdmin(r); err != nil {
		return b.record(r, rec, err)
	}
	uri, err := resourceOf(r)
	if err != nil {
		return err
	}
	rec.Resource = uri.String()
	return b.record(r, rec, change(uri))
}

// list serves GET /resource to admins: the names of all resources. Trustee has no such endpoint.
func (b *Broker) list(w http.ResponseWriter, r *http.Request) error {
	if err := b.record(r, audit.Record{Event: audit.EventAdmin, Action: "LIST"}, b.checkAdmin(r)); err != nil {
		return err
	}
	uris, err := b.Store.List(r.Context())
	if err != nil {
		return broken("the resources could not be listed", err)
	}
	names := make([]string, 0, len(uris))
	for _, uri := range uris {
		names = append(names, uri.String())
	}
	return sendJSON(w, kbs.ResourceList{Resources: names})
}

func (b *Broker) checkAdmin(r *http.Request) error {
	if b.Admins == nil {
		return refuse(kbs.KindAdminAuth, "admin access is switched off: the broker has no admin key")
	}
	token, ok := bearer(r)
	if !ok {
		return refuse(kbs.KindAdminAuth, "request carries no bearer token")
	}
	if err := b.Admins.Verify(token, b.Now()); err != nil {
		return refuse(kbs.KindAdminAuth, "%s", peerText(err))
	}
	return nil
}
