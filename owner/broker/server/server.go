// Package server runs a broker as a process: it puts the parts together from the configuration, listens, and ends in order.
package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"runtime/debug"
	"time"

	"github.com/containerd/log"

	"github.com/coffer-project/coffer/owner/broker"
	"github.com/coffer-project/coffer/owner/broker/admin"
	"github.com/coffer-project/coffer/owner/broker/audit"
	"github.com/coffer-project/coffer/owner/broker/config"
	"github.com/coffer-project/coffer/owner/broker/ear"
	"github.com/coffer-project/coffer/owner/broker/keys"
	"github.com/coffer-project/coffer/owner/broker/metrics"
	"github.com/coffer-project/coffer/owner/broker/policy"
	"github.com/coffer-project/coffer/owner/broker/reference"
	"github.com/coffer-project/coffer/owner/broker/store"
)

// Server is a broker with its listener.
type Server struct {
	config   config.Config
	listener net.Listener
	http     *http.Server
	metrics  *metrics.Metrics
	sessions *store.Sessions // nil where they are in memory only
	closers  []func() error

	metricsListener net.Listener // nil where there are none
}

// New opens everything that the configuration names and begins to listen, so that a caller that gets no error can tell others to
// connect. Close or Run must follow.
func New(ctx context.Context, c config.Config) (_ *Server, retErr error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	s := &Server{config: c, metrics: metrics.New(version())}
	defer func() {
		if retErr != nil {
			retErr = errors.Join(retErr, s.Close())
		}
	}()
	handler, err := s.assemble(ctx)
	if err != nil {
		return nil, err
	}
	certificate, err := c.Certificate()
	if err != nil {
		return nil, err
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", c.Server.Listen)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", c.Server.Listen, err)
	}
	s.closers = append(s.closers, func() error { return ignoreClosed(listener.Close()) })
	s.listener = listener
	s.http = &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       60 * time.Second,
		MaxHeaderBytes:    320 << 10, // bearer tokens carry the measured configuration
		// Requests that run when ctx ends may finish.
		BaseContext: func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
		ErrorLog:    quietLog(ctx),
	}
	if certificate != nil {
		s.http.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: certificate.Get}
	}
	if err := s.listenMetrics(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// sharedLife is how long a policy or reference value is used without asking the store again: so long may a change by another broker go
// unnoticed.
const sharedLife = time.Second

// assemble opens the broker's parts.
func (s *Server) assemble(ctx context.Context) (http.Handler, error) {
	c := s.config
	key, certs, err := c.TokenKey()
	if err != nil {
		return nil, err
	}
	tokens, err := ear.NewIssuer(key, certs, time.Now)
	if err != nil {
		return nil, err
	}
	sessionKey, err := keys.Session(key)
	if err != nil {
		return nil, err
	}
	admins, err := c.Admins()
	if err != nil {
		return nil, err
	}
	entries, err := c.OpenStore(ctx)
	if err != nil {
		return nil, err
	}
	s.closers = append(s.closers, entries.Close)
	auditFile, err := c.AuditFile()
	if err != nil {
		return nil, err
	}
	s.closers = append(s.closers, auditFile.Close)
	cached := store.Cached(entries, sharedLife, time.Now)
	references := reference.New(cached, time.Now)
	policies := policy.New(cached, references, c.Attest.AllowSample)
	list, err := verifiers(ctx, c, references)
	if err != nil {
		return nil, err
	}
	deviceList, err := devices(ctx, c, references)
	if err != nil {
		return nil, err
	}
	o := broker.Options{
		Verifiers: list, Devices: deviceList,
		Policy: policies, Policies: policies, Appraisal: policies, References: references,
		Store:      store.Resources{Store: entries},
		Tokens:     tokens,
		SessionKey: sessionKey,
		Metrics:    s.metrics,
		Admins: &admin.Verifier{
			Admins: admins, Issuer: c.Admin.Issuer, Audience: c.Admin.Audience, Role: c.Admin.Role,
		},
		Audit:             audit.New(auditFile),
		TokenLifetime:     time.Duration(c.Attest.TokenLifetime),
		SessionLifetime:   time.Duration(c.Attest.SessionLifetime),
		MaxSessions:       c.Attest.MaxSessions,
		RequestsPerSecond: c.Server.RequestsPer,
		RequestBurst:      c.Server.RequestBurst,
	}
	if c.Attest.ShareSessions {
		s.sessions = &store.Sessions{Store: entries}
		o.Sessions = s.sessions
	}
	return broker.New(o)
}

// CollectLess makes the garbage collector run less often than for a program of this size: a broker keeps a few MiB and makes some hundred
// KiB for each guest. It is for processes that do nothing else, and leaves a choice in GOGC (runtime documentation) alone.
func CollectLess() {
	const usual, less = 100, 400 // percent
	if before := debug.SetGCPercent(less); before != usual {
		debug.SetGCPercent(before)
	}
}

// URL returns the base URL of the listener.
func (s *Server) URL() string {
	scheme := "http"
	if s.config.TLS() {
		scheme = "https"
	}
	return scheme + "://" + s.listener.Addr().String()
}

// Run serves until ctx ends, lets running requests finish for the configured time, and closes everything.
func (s *Server) Run(ctx context.Context) (retErr error) {
	defer func() { retErr = errors.Join(retErr, s.Close()) }()
	log.G(ctx).WithField("url", s.URL()).WithField("allow_sample", s.config.Attest.AllowSample).Info("key broker is listening")
	defer s.background(ctx)()
	served := make(chan error, 1)
	go func() {
		if s.http.TLSConfig != nil {
			served <- s.http.ServeTLS(s.listener, "", "")
			return
		}
		served <- s.http.Serve(s.listener)
	}()
	select {
	case err := <-served:
		return fmt.Errorf("serve %s: %w", s.URL(), err)
	case <-ctx.Done():
	}
	log.G(ctx).Info("key broker is shutting down")
	stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Duration(s.config.Server.ShutdownWait))
	defer cancel()
	err := s.http.Shutdown(stopCtx)
	if err != nil {
		err = errors.Join(fmt.Errorf("requests were cut off after %s: %w", time.Duration(s.config.Server.ShutdownWait), err), s.http.Close())
	}
	<-served
	return err
}

// Close releases what New opened, newest first. It may be called again.
func (s *Server) Close() error {
	var errs []error
	for len(s.closers) > 0 {
		last := len(s.closers) - 1
		errs = append(errs, s.closers[last]())
		s.closers = s.closers[:last]
	}
	return errors.Join(errs...)
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
