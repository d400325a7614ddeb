//go:build !pkcs11

package config

import (
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/owner/broker/store"
)

// openPKCS11 needs cgo, which the usual build is without.
func openPKCS11(string) (store.Wrapper, error) {
	return nil, fmt.Errorf("this coffer-kbs cannot use an HSM: build it with CGO_ENABLED=1 and -tags pkcs11: %w", errdefs.ErrNotImplemented)
}
