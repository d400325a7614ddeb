//go:build pkcs11

package config

import (
	"github.com/coffer-project/coffer/owner/broker/hsm"
	"github.com/coffer-project/coffer/owner/broker/store"
)

// openPKCS11 opens a master key in an HSM.
func openPKCS11(uri string) (store.Wrapper, error) { return hsm.Open(uri) }
