//go:build !amd64

package digestmac

const supported = false

// blocks and blocks3 are never called where they are not supported.
func blocks(_, _ *state, _ []byte) { panic("digestmac: not supported on this processor") }

func blocks3(_, _ *state, _ []byte, _ *state, _ *byte) {
	panic("digestmac: not supported on this processor")
}
