// Package worker unpacks each layer in a process of its own, which is started for it, locked into the layer's directory by
// package jail, and gone before the layer is published. Decoders and the tar reader, which hostile bytes meet, so run apart
// from the agent, its keys and all other layers.
//
//	parent: fetch, blob digest, HMAC, decipher --ring--> worker: decompress, diff id, files
//	        rebuild the answer, release        <--------         sizes, diff id, what is left to do
//
// The ring is memory that the parent writes and the worker can only read: the parent deciphers into it, and the worker
// decompresses out of it. A socket carries short messages, see message. The parent takes all that a worker says as hostile:
// it is bounded, parsed strictly and rebuilt, and a worker that breaks the rules is killed. The end of the stream is told
// to the worker only after blob digest and HMAC were found right.
package worker

import "github.com/containerd/errdefs"

// Program is the name of the worker's program, which does nothing but call Main. It is one of its own because it is started
// for each layer, and to have nothing in it that the jail would have to keep from it.
const Program = "coffer-unpack"

const (
	// blockSize is the size of a block of the ring, slots their number.
	blockSize = 1 << 20
	slots     = 3

	// Descriptors of the worker beside the standard ones.
	socketFD = 3
	ringFD   = 4
	dirFD    = 5
)

// failure is an error on its way from the worker.
type failure struct {
	Class   string `json:"class"`
	Message string `json:"message"`
}

// maxFailure bounds the text of an error in bytes.
const maxFailure = 1 << 10

// classes are the errors that a worker may claim; their names are only for the wire.
var classes = map[string]error{
	"invalid":     errdefs.ErrInvalidArgument,
	"range":       errdefs.ErrOutOfRange,
	"full":        errdefs.ErrResourceExhausted,
	"unsupported": errdefs.ErrNotImplemented,
	"internal":    errdefs.ErrInternal,
}
