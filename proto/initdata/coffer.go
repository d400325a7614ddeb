package initdata

import (
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
)

// KeyCoffer is the entry of Document.Data that Coffer alone knows: coffer.toml.
const KeyCoffer = "coffer.toml"

// What holds where a document brings no policy.
const (
	// DefaultStrict runs what the verified images say, and lets nobody look in.
	DefaultStrict = "strict"
	// DefaultDevelopment believes the host in what runs, and lets it run programs in containers. It is the document's own word, so whoever
	// releases keys by the document's digest knows.
	DefaultDevelopment = "development"
)

// CofferConfig is coffer.toml.
type CofferConfig struct {
	Policy struct {
		// Default is DefaultStrict or DefaultDevelopment; empty means DefaultStrict.
		Default string `toml:"default"`
	} `toml:"policy"`
	Attestation AttestationConfig `toml:"attestation"`
	Secrets     SecretsConfig     `toml:"secrets"`
	REST        RESTConfig        `toml:"rest"`
	GPU         struct {
		// Unprotected allows that containers of a TEE use GPUs that do no confidential computing. The host can read what those work on.
		Unprotected bool `toml:"unprotected"`
	} `toml:"gpu"`
}

// ParseCoffer reads coffer.toml strictly. Faults are InvalidArgument.
func ParseCoffer(text string) (*CofferConfig, error) {
	var c CofferConfig
	if err := decodeTOML([]byte(text), &c); err != nil {
		return nil, fmt.Errorf("%s: %w", KeyCoffer, err)
	}
	if err := errors.Join(c.Attestation.validate(), c.Secrets.validate(), c.REST.validate()); err != nil {
		return nil, fmt.Errorf("%s: %w", KeyCoffer, err)
	}
	switch c.Policy.Default {
	case "":
		c.Policy.Default = DefaultStrict
	case DefaultStrict, DefaultDevelopment:
	default:
		return nil, fmt.Errorf("%s: policy.default %q is neither %q nor %q: %w", KeyCoffer, clip(c.Policy.Default), DefaultStrict, DefaultDevelopment, errdefs.ErrInvalidArgument)
	}
	return &c, nil
}

// Encode returns a text that ParseCoffer reads, empty where nothing is set.
func (c *CofferConfig) Encode() string {
	var out strings.Builder
	if which := c.Policy.Default; which != "" {
		fmt.Fprintf(&out, "[policy]\ndefault = %q\n", which)
	}
	out.WriteString(c.Attestation.encode())
	out.WriteString(c.Secrets.encode())
	out.WriteString(c.REST.encode())
	if c.GPU.Unprotected {
		out.WriteString("[gpu]\nunprotected = true\n")
	}
	return out.String()
}

// Coffer returns what coffer.toml says, and what holds without it. A nil document is an empty one. Faults are InvalidArgument.
func (d *Document) Coffer() (*CofferConfig, error) {
	if d == nil {
		return ParseCoffer("")
	}
	return ParseCoffer(d.Data[KeyCoffer])
}

// PolicyDefault returns which default the document asks for, empty when it brings a policy. InvalidArgument: it asks for both.
func (d *Document) PolicyDefault() (string, error) {
	c, err := d.Coffer()
	if err != nil {
		return "", err
	}
	if _, has := d.Data[KeyPolicy]; !has {
		return c.Policy.Default, nil
	}
	if c.Policy.Default != DefaultStrict {
		return "", fmt.Errorf("document brings %s, and %s asks for the default %q: remove one: %w", KeyPolicy, KeyCoffer, c.Policy.Default, errdefs.ErrInvalidArgument)
	}
	return "", nil
}
