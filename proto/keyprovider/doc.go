// Package keyprovider is the contract between ocicrypt and whoever wraps and unwraps the keys of image layers: the
// packet in a layer's annotation, and the service that ocicrypt calls.
package keyprovider
