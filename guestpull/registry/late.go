package registry

import (
	"context"
	"crypto/x509"
	"fmt"
	"slices"
)

// Late are the parts of a configuration that have to be fetched first.
type Late struct {
	Registries []Registry
	Hosts      map[string][]Host
}

// setup is a configuration that is complete.
type setup struct {
	config Config
	// sites are by Config.Hosts' entries; nil has all others.
	sites map[*Host]*site
}

func newSetup(config Config, roots *x509.CertPool) (*setup, error) {
	if err := config.validate(); err != nil {
		return nil, err
	}
	s := &setup{config: config, sites: map[*Host]*site{}}
	var err error
	if s.sites[nil], err = newSite(&config, nil, roots); err != nil {
		return nil, err
	}
	for _, list := range config.Hosts {
		for i := range list {
			if s.sites[&list[i]], err = newSite(&config, &list[i], roots); err != nil {
				return nil, err
			}
		}
	}
	return s, nil
}

// site returns how an endpoint is talked to.
func (s *setup) site(ep endpoint) *site {
	if found := s.sites[ep.special]; found != nil {
		return found
	}
	return s.sites[nil]
}

// ready returns the complete configuration. The first call fetches what is missing; a call that fails leaves it to the next.
func (c *Client) ready(ctx context.Context) (*setup, error) {
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if c.whole != nil {
		return c.whole, nil
	}
	late, err := c.config.Late(ctx)
	if err != nil {
		return nil, fmt.Errorf("get the configuration of registries: %w", err)
	}
	config := c.config
	config.Registries = append(slices.Clip(config.Registries), late.Registries...)
	if late.Hosts != nil {
		config.Hosts = late.Hosts
	}
	whole, err := newSetup(config, c.roots)
	if err != nil {
		return nil, err
	}
	c.whole = whole
	return whole, nil
}
