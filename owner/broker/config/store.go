package config

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/coffer-project/coffer/owner/broker/keys"
	"github.com/coffer-project/coffer/owner/broker/store"
	"github.com/coffer-project/coffer/owner/broker/store/bolt"
	"github.com/coffer-project/coffer/owner/broker/store/files"
	"github.com/coffer-project/coffer/owner/broker/store/vault"
)

// OpenStore opens the store that the configuration names, with the master key over it where there is one. The caller closes it.
func (c Config) OpenStore(ctx context.Context) (_ store.Store, retErr error) {
	inner, err := c.openBackend()
	if err != nil {
		return nil, err
	}
	defer func() {
		if retErr != nil {
			retErr = errors.Join(retErr, inner.Close())
		}
	}()
	if c.Store.MasterKeyFile == "" {
		log.G(ctx).WithField("kind", c.Store.Kind).Warn("the store keeps its values in the clear: there is no master_key_file")
		return inner, nil
	}
	master, err := OpenMaster(c.Store.MasterKeyFile)
	if err != nil {
		return nil, err
	}
	return store.Sealed(ctx, inner, master)
}

// Rewrap replaces the master key of the store by another one.
func (c Config) Rewrap(ctx context.Context, fresh string) (retErr error) {
	if c.Store.MasterKeyFile == "" {
		return fmt.Errorf("store.master_key_file is not set: a store that was begun without a key cannot get one later: %w", errdefs.ErrFailedPrecondition)
	}
	inner, err := c.openBackend()
	if err != nil {
		return err
	}
	defer func() { retErr = errors.Join(retErr, inner.Close()) }()
	var masters []store.Wrapper
	for _, name := range []string{c.Store.MasterKeyFile, fresh} {
		master, err := OpenMaster(name)
		if err != nil {
			return err
		}
		masters = append(masters, master)
	}
	return store.Rewrap(ctx, inner, masters[0], masters[1])
}

func (c Config) openBackend() (store.Store, error) {
	switch c.Store.Kind {
	case Bolt:
		return bolt.Open(c.Store.Path)
	case Vault:
		v := c.Store.Vault
		o := vault.Options{URL: v.URL, Mount: v.Mount, Prefix: v.Prefix, Namespace: v.Namespace, TokenFile: v.TokenFile}
		if v.CAFile != "" {
			var err error
			if o.CACertPEM, err = os.ReadFile(v.CAFile); err != nil {
				return nil, fmt.Errorf("read the vault's CA: %w", err)
			}
		}
		return vault.Open(o)
	default:
		return files.Open(c.Store.Path)
	}
}

// OpenMaster opens a master key: a file, or a key in an HSM that a pkcs11: URI names.
func OpenMaster(name string) (store.Wrapper, error) {
	if strings.HasPrefix(name, "pkcs11:") {
		return openPKCS11(name)
	}
	raw, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("read master key: %w", err)
	}
	key, err := keys.ParseMaster(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return store.NewMasterKey(key)
}
