package broker

import (
	"net/http"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/owner/broker/admin"
	"github.com/coffer-project/coffer/owner/broker/audit"
	"github.com/coffer-project/coffer/proto/kbs"
)

// asAdmin runs work for an admin who has a permission, and records it under the request's method, with the object that work names in the
// record. The admin is checked before anything else is read.
func (b *Broker) asAdmin(r *http.Request, p admin.Permission, work func(rec *audit.Record) error) error {
	rec := audit.Record{Event: audit.EventAdmin, Action: r.Method}
	who, err := b.adminOf(r)
	if err == nil {
		rec.Admin = who.Name
		if denied := who.Check(p); denied != nil {
			err = refuse(kbs.KindAdminAuth, "%s", peerText(denied))
		}
	}
	if err == nil {
		err = work(&rec)
	}
	return b.record(r, rec, err)
}

func (b *Broker) adminOf(r *http.Request) (admin.Identity, error) {
	if b.Admins == nil {
		return admin.Identity{}, refuse(kbs.KindAdminAuth, "admin access is switched off: the broker has no admin key")
	}
	token, ok := bearer(r)
	if !ok {
		return admin.Identity{}, refuse(kbs.KindAdminAuth, "request carries no bearer token")
	}
	who, err := b.Admins.Verify(token, b.Now())
	if err != nil {
		return admin.Identity{}, refuse(kbs.KindAdminAuth, "%s", peerText(err))
	}
	return who, nil
}

// put serves POST and PUT of a resource: the body is the resource itself.
func (b *Broker) put(w http.ResponseWriter, r *http.Request) error {
	return b.asAdmin(r, admin.WriteResources, func(rec *audit.Record) error {
		uri, err := resourceOf(r)
		if err != nil {
			return err
		}
		rec.Resource = uri.String()
		data, err := readBody(w, r, kbs.MaxResource)
		if err != nil {
			return err
		}
		if err := b.Store.Put(r.Context(), uri, data); err != nil {
			return adminError("the resource could not be stored", kbs.KindPluginInternal, err)
		}
		b.Metrics.Written(uri.Path())
		return nil
	})
}

// delete serves DELETE of a resource.
func (b *Broker) delete(_ http.ResponseWriter, r *http.Request) error {
	return b.asAdmin(r, admin.WriteResources, func(rec *audit.Record) error {
		uri, err := resourceOf(r)
		if err != nil {
			return err
		}
		rec.Resource = uri.String()
		err = b.Store.Delete(r.Context(), uri)
		if errdefs.IsNotFound(err) {
			return missing(kbs.KindNotFound, "no resource %s", uri.Path())
		}
		if err != nil {
			return broken("the resource could not be deleted", err)
		}
		b.Metrics.Deleted(uri.Path())
		return nil
	})
}

// list serves GET /resource to admins: the names of all resources. Trustee has no such endpoint.
func (b *Broker) list(w http.ResponseWriter, r *http.Request) error {
	var answer kbs.ResourceList
	err := b.asAdmin(r, admin.ListResources, func(rec *audit.Record) error {
		rec.Action, rec.Object = actionList, "resources"
		uris, err := b.Store.List(r.Context())
		if err != nil {
			return broken("the resources could not be listed", err)
		}
		answer.Resources = make([]string, 0, len(uris))
		for _, uri := range uris {
			answer.Resources = append(answer.Resources, uri.String())
		}
		return nil
	})
	if err != nil {
		return err
	}
	return sendJSON(w, answer)
}

// actionList is the recorded action of reading names.
const actionList = "LIST"

// status serves GET /status to admins.
func (b *Broker) status(w http.ResponseWriter, r *http.Request) error {
	answer := kbs.Status{Version: verifierID().Build, TEEs: b.verifiers.TEEs(), Devices: []string{}}
	err := b.asAdmin(r, admin.ReadStatus, func(rec *audit.Record) error {
		rec.Object = "status"
		who, err := b.adminOf(r)
		if err != nil {
			return err
		}
		answer.Admin = who.Name
		for _, role := range who.Roles {
			answer.Roles = append(answer.Roles, string(role))
		}
		for _, d := range b.Devices {
			answer.Devices = append(answer.Devices, d.Device())
		}
		uris, err := b.Store.List(r.Context())
		if err != nil {
			return broken("the resources could not be listed", err)
		}
		answer.Resources = len(uris)
		return b.policyStatus(r.Context(), &answer)
	})
	if err != nil {
		return err
	}
	return sendJSON(w, answer)
}

// ready serves GET /readyz: whether the store answers, for load balancers. It says no more than that.
func (b *Broker) ready(w http.ResponseWriter, r *http.Request) error {
	_, err := b.Store.Get(r.Context(), kbs.ResourceURI{Repository: "coffer-kbs", Type: "health", Tag: "probe"})
	if err != nil && !errdefs.IsNotFound(err) {
		return &fault{status: http.StatusServiceUnavailable, kind: kbs.KindPluginInternal, detail: "the store does not answer", cause: err}
	}
	w.Header().Set("Content-Type", "text/plain")
	_, _ = w.Write([]byte("ready\n")) // a peer that has gone needs no answer
	return nil
}

// adminError is broken, except that an admin learns what was wrong with what was handed in.
func adminError(what, kind string, err error) error {
	if errdefs.IsInvalidArgument(err) {
		return &fault{status: http.StatusBadRequest, kind: kind, detail: strings.TrimSuffix(err.Error(), ": "+errdefs.ErrInvalidArgument.Error())}
	}
	return broken(what, err)
}
