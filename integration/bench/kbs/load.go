package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	guest "github.com/coffer-project/coffer/guestpull/kbs"
)

// newGuest returns a guest with a connection of its own, and what closes it.
func (s *site) newGuest(b *broker) (*guest.Client, func(), error) {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(s.caPEM)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, MaxIdleConnsPerHost: 64}
	client, err := guest.New(guest.Options{URL: b.url, HTTPClient: &http.Client{Transport: transport}, Attester: forger{s.signer}})
	return client, transport.CloseIdleConnections, err
}

// handshakes makes each step a new guest that proves itself and fetches its first key.
func handshakes(_ context.Context, s *site, b *broker) (func(context.Context) error, error) {
	return func(ctx context.Context) error {
		client, done, err := s.newGuest(b)
		if err != nil {
			return err
		}
		defer done()
		_, err = client.Resource(ctx, uri)
		return err
	}, nil
}

// reads makes each step the reading of a key by a guest that has proved itself.
func reads(ctx context.Context, s *site, b *broker) (func(context.Context) error, error) {
	client, _, err := s.newGuest(b)
	if err != nil {
		return nil, err
	}
	if _, err := client.Resource(ctx, uri); err != nil {
		return nil, err
	}
	return func(ctx context.Context) error {
		_, err := client.Resource(ctx, uri)
		return err
	}, nil
}

// measure runs steps against a fresh broker for a time, some at once, and says how it went. The broker's profile goes to a file.
func (s *site) measure(ctx context.Context, load func(context.Context, *site, *broker) (func(context.Context) error, error), profile string, length time.Duration, guests int) (_ figures, retErr error) {
	b, err := s.start(ctx, profile)
	if err != nil {
		return figures{}, err
	}
	defer func() { retErr = errors.Join(retErr, b.stop()) }()
	step, err := load(ctx, s, b)
	if err != nil {
		return figures{}, err
	}
	if err := step(ctx); err != nil { // the first one fills caches
		return figures{}, err
	}
	before, err := b.usage()
	if err != nil {
		return figures{}, err
	}
	times, elapsed, err := drive(ctx, step, length, guests)
	if err != nil {
		return figures{}, err
	}
	after, err := b.usage()
	if err != nil {
		return figures{}, err
	}
	if err := b.stop(); err != nil {
		return figures{}, fmt.Errorf("broker: %w", err)
	}
	crypto, err := cryptoShare(b.profile)
	if err != nil {
		return figures{}, err
	}
	return sumUp(times, elapsed, after.since(before), crypto), nil
}

// drive repeats step in several goroutines until length is over and returns how long each one took.
func drive(ctx context.Context, step func(context.Context) error, length time.Duration, guests int) ([]time.Duration, time.Duration, error) {
	var (
		mu    sync.Mutex
		all   []time.Duration
		errs  []error
		group sync.WaitGroup
	)
	begin := time.Now()
	for range guests {
		group.Go(func() {
			var times []time.Duration
			var err error
			for err == nil && time.Since(begin) < length {
				start := time.Now()
				if err = step(ctx); err == nil {
					times = append(times, time.Since(start))
				}
			}
			mu.Lock()
			defer mu.Unlock()
			all, errs = append(all, times...), append(errs, err)
		})
	}
	group.Wait()
	return all, time.Since(begin), errors.Join(errs...)
}
