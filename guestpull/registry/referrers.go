package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-project/coffer/proto/imagepolicy"
)

const (
	referrers = "referrers"

	// maxReferrers bounds one page of a list of referrers in bytes, maxPages the pages.
	maxReferrers = 1 << 20
	maxPages     = 16
)

// noReferrers are the statuses of registries that do not know the referrers API, besides 404.
var noReferrers = []int{http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusNotAcceptable, http.StatusNotImplemented}

// Referrers lists what refers to a manifest (OCI distribution, "Listing Referrers"). Nothing vouches for the list: its
// entries are only where to look. A mirror that lists nothing is not believed, as it need not know what the registry has.
// NotFound: no endpoint keeps such lists.
func (c *Client) Referrers(ctx context.Context, ref string, dgst digest.Digest) ([]ocispec.Descriptor, error) {
	if err := dgst.Validate(); err != nil {
		return nil, fmt.Errorf("list referrers: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	all, err := c.endpoints(ctx, ref)
	if err != nil {
		return nil, err
	}
	var list []ocispec.Descriptor
	left := len(all)
	err = c.each(ctx, ref, func(ep endpoint) error {
		left--
		if ep.noPull {
			return errNotMeant
		}
		found, err := c.pages(ctx, ep, dgst)
		if err == nil && len(found) == 0 && left > 0 {
			return fmt.Errorf("mirror %s lists no referrers: %w", ep.host, errdefs.ErrNotFound)
		}
		list = found
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list referrers of %s in %s: %w", dgst, ref, err)
	}
	return list, nil
}

// pages reads a list to its end.
func (c *Client) pages(ctx context.Context, ep endpoint, dgst digest.Digest) ([]ocispec.Descriptor, error) {
	var list []ocispec.Descriptor
	object := dgst.String()
	for range maxPages {
		found, query, err := c.page(ctx, ep, object)
		if err != nil {
			return nil, err
		}
		if list = append(list, found...); query == "" {
			return list, nil
		}
		object = dgst.String() + "?" + query
	}
	return nil, fmt.Errorf("registry %s lists referrers on more than %d pages: %w", ep.host, maxPages, errdefs.ErrFailedPrecondition)
}

// page reads a part of a list, and returns the query of the next one.
func (c *Client) page(ctx context.Context, ep endpoint, object string) ([]ocispec.Descriptor, string, error) {
	resp, err := c.ask(ctx, ep, http.MethodGet, referrers, object, http.Header{"Accept": {ocispec.MediaTypeImageIndex}})
	if err != nil {
		if status, ok := errors.AsType[*statusError](err); ok && slices.Contains(noReferrers, status.code) {
			return nil, "", &statusError{msg: status.msg, class: errdefs.ErrNotFound, code: status.code}
		}
		return nil, "", err
	}
	defer closeBody(resp)
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxReferrers+1))
	switch {
	case err != nil:
		return nil, "", err
	case len(raw) > maxReferrers:
		return nil, "", fmt.Errorf("registry %s sent a list of referrers larger than %d bytes: %w", ep.host, maxReferrers, errdefs.ErrFailedPrecondition)
	}
	found, err := imagepolicy.ParseReferrers(raw)
	if err != nil {
		return nil, "", fmt.Errorf("registry %s: %w", ep.host, err)
	}
	return found, nextQuery(resp.Header.Get("Link")), nil
}

// nextQuery takes the query out of a Link header for the next page, and nothing else: the address stays ours.
func nextQuery(link string) string {
	target, rel, ok := strings.Cut(link, ">")
	if !ok || !strings.Contains(rel, "next") {
		return ""
	}
	u, err := url.Parse(strings.TrimPrefix(strings.TrimSpace(target), "<"))
	if err != nil {
		return ""
	}
	return u.Query().Encode()
}
