//go:build !amd64

package digestmac

const supported = false

// blocks is never called where it is not supported.
func blocks(_, _ *state, _ []byte) { panic("digestmac: not supported on this processor") }
