// Package hsm keeps a store's master key in an HSM, by PKCS #11: the key is an AES-256 object that never leaves it. It needs cgo and the
// vendor's library, so it is only in builds with the tag pkcs11; the rest of the broker knows it as a store.Wrapper.
package hsm
