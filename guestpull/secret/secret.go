// Package secret opens sealed secrets: it turns what stands in a variable's place into the secret that the key broker releases to this
// guest.
//
// A sealed secret comes through the host, which may make up, change and exchange it. So it counts only when it is signed by a key that the
// measured document names or, where that names none, by a key that the broker has under the name in the secret; unsigned ones only where
// the measured document allows them. What the signature does not bind is the variable: a policy does.
//
// Secrets and keys are kept in the guest's memory, so that a pod costs one fetch for each. Who seals a secret anew gets what the broker has
// by then: what is kept belongs to a sealed text. Nothing of it reaches errors or logs.
package secret

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/singleflight"

	"github.com/coffer-project/coffer/proto/initdata"
	"github.com/coffer-project/coffer/proto/kbs"
	"github.com/coffer-project/coffer/proto/sealed"
)

const (
	// fetchTimeout bounds attestation and release of one resource.
	fetchTimeout = 2 * time.Minute
	// maxKept bounds the resources that are kept, and with the key broker's limit on one resource what they take of memory. The oldest
	// makes way: it is fetched again when it is asked for.
	maxKept = 256
)

// Source releases resources of the key broker by their URI (kbs:///repository/type/tag), after attestation where it has to.
type Source interface {
	Resource(ctx context.Context, uri string) ([]byte, error)
}

// Unsealer opens the sealed secrets of a pod. It is safe for concurrent use.
type Unsealer struct {
	source Source
	config initdata.SecretsConfig
	flight singleflight.Group

	mu   sync.Mutex
	kept map[string][]byte // by what they were fetched for
	ages []string          // the keys of kept, oldest first
}

// New returns an Unsealer that does as the measured document says. A nil source refuses every secret.
func New(source Source, config initdata.SecretsConfig) *Unsealer {
	return &Unsealer{source: source, config: config, kept: map[string][]byte{}}
}

// Unseal returns the secret; nobody may change it. Errors name resources and never hold a part of a secret. InvalidArgument: text is no
// sealed secret. NotImplemented: it is of a kind that guests cannot open. FailedPrecondition: the guest has no key broker.
// PermissionDenied: its signature does not count, or the broker refuses. Others are those of the broker.
func (u *Unsealer) Unseal(ctx context.Context, text string) ([]byte, error) {
	s, err := sealed.Parse(text)
	if err != nil {
		return nil, err
	}
	name, err := resource(s)
	if err != nil {
		return nil, err
	}
	if u.source == nil {
		return nil, fmt.Errorf("sealed secret %s: the guest was given no key broker (kbc in the initdata's cdh.toml): %w", name, errdefs.ErrFailedPrecondition)
	}
	if err := u.verify(ctx, s); err != nil {
		return nil, fmt.Errorf("sealed secret %s: %w", name, err)
	}
	value, err := u.fetch(ctx, name, text)
	if err != nil {
		return nil, fmt.Errorf("sealed secret %s: %w", name, err)
	}
	return value, nil
}

// resource is what a secret points to. Providers are compared as Confidential Containers does it.
func resource(s *sealed.Secret) (string, error) {
	if s.Vault == nil {
		return "", fmt.Errorf("sealed secret is an envelope of provider %.64q, whose key a key management service opens; this guest asks its key "+
			"broker alone, which hands out secrets and opens none: keep the secret there and seal its name (cofferctl secret seal): %w",
			s.Envelope.Provider, errdefs.ErrNotImplemented)
	}
	if !strings.EqualFold(s.Vault.Provider, sealed.ProviderKBS) {
		return "", fmt.Errorf("sealed secret is kept by provider %.64q; this guest asks its key broker alone: keep the secret there and seal its name "+
			"(provider %q, cofferctl secret seal): %w", s.Vault.Provider, sealed.ProviderKBS, errdefs.ErrNotImplemented)
	}
	return ownResource(s.Vault.Name)
}

// ownResource returns a resource's one name: what a URI says of where the broker is counts for nothing.
func ownResource(text string) (string, error) {
	uri, err := kbs.ParseResourceURI(text)
	if err != nil {
		return "", fmt.Errorf("sealed secret: %w", err)
	}
	uri.Address = ""
	return uri.String(), nil
}

// verify decides whether a secret counts.
func (u *Unsealer) verify(ctx context.Context, s *sealed.Secret) error {
	if !s.Signed() {
		if u.config.Unsigned {
			return nil
		}
		return fmt.Errorf("it is not signed, and the measured document does not allow that: sign it (cofferctl secret seal --key), or set secrets.unsigned in %s: %w",
			initdata.KeyCoffer, errdefs.ErrPermissionDenied)
	}
	signer, err := ownResource(s.KeyID)
	if err != nil {
		return fmt.Errorf("its signing key: %w", err)
	}
	if len(u.config.Signers) > 0 && !slices.Contains(u.config.Signers, signer) {
		return fmt.Errorf("its signing key %s is none of secrets.signers in the measured document's %s: %w", signer, initdata.KeyCoffer, errdefs.ErrPermissionDenied)
	}
	raw, err := u.fetch(ctx, signer, signer)
	if err != nil {
		return fmt.Errorf("its signing key: %w", err)
	}
	key, err := sealed.ParseKey(raw)
	if err != nil {
		return fmt.Errorf("its signing key %s: %w", signer, err)
	}
	return s.Verify(key)
}

// fetch returns a resource, from the broker once for one purpose: itself, or a sealed text.
func (u *Unsealer) fetch(ctx context.Context, uri, purpose string) ([]byte, error) {
	if value, ok := u.have(purpose); ok {
		return value, nil
	}
	result := u.flight.DoChan(purpose, func() (any, error) {
		// Another flight may have landed since.
		if value, ok := u.have(purpose); ok {
			return value, nil
		}
		// Whoever asks first must not take the secret away from the others when it is cancelled.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), fetchTimeout)
		defer cancel()
		value, err := u.source.Resource(ctx, uri)
		if err != nil {
			return nil, err
		}
		u.keep(purpose, value)
		return value, nil
	})
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case r := <-result:
		if r.Err != nil {
			return nil, r.Err
		}
		return r.Val.([]byte), nil
	}
}

func (u *Unsealer) have(purpose string) ([]byte, bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	value, ok := u.kept[purpose]
	return value, ok
}

// keep is called once for what is not kept.
func (u *Unsealer) keep(purpose string, value []byte) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.ages) >= maxKept {
		delete(u.kept, u.ages[0])
		u.ages = u.ages[1:]
	}
	u.kept[purpose] = value
	u.ages = append(u.ages, purpose)
}
