package kbs

import (
	"context"
	"net/http"
	"time"

	proto "github.com/coffer-project/coffer/proto/kbs"
)

// fetch gets one resource. A broker that answers 401 may have forgotten the session, or may have learned something new about guests
// like this one since the session began: then one new handshake is made. A refusal in a session that began in this very call is final.
func (c *Client) fetch(ctx context.Context, uri proto.ResourceURI) ([]byte, error) {
	before := c.Timings().Handshakes
	s, err := c.attested(ctx, nil)
	if err != nil {
		return nil, err
	}
	a, err := c.get(ctx, uri, s)
	if err != nil {
		return nil, err
	}
	isNew := c.Timings().Handshakes != before
	if a.status == http.StatusUnauthorized && !(isNew && a.problem.Kind() == proto.KindPolicyDeny) {
		if s, err = c.attested(ctx, s); err != nil {
			return nil, err
		}
		if a, err = c.get(ctx, uri, s); err != nil {
			return nil, err
		}
	}
	switch a.status {
	case http.StatusOK:
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound:
		return nil, c.refusedResource(uri, a)
	default:
		return nil, c.garbage("the request for resource "+uri.String(), a.reason())
	}
	plain, err := s.key.open(a.body)
	if err != nil {
		return nil, c.garbage("the request for resource "+uri.String(), err.Error())
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.timings.Fetches++
	return plain, nil
}

func (c *Client) get(ctx context.Context, uri proto.ResourceURI, s *session) (a *answer, err error) {
	start := time.Now()
	err = c.retry(ctx, func(ctx context.Context) error {
		a, err = c.exchange(ctx, "the request for resource "+uri.String(), proto.MaxResourceReply, func(ctx context.Context) (*http.Request, error) {
			return c.request(ctx, http.MethodGet, proto.PathResource+"/"+uri.Path(), s.cookie, nil)
		})
		return err
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	c.timings.Fetch += time.Since(start)
	return a, err
}
