package worker

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
)

// Kinds of messages. Each is its kind in one byte, the length of its content in four, least byte first, and the content.
const (
	// From the parent. A job comes first; blocks follow in the order of the ring.
	kindJob   = 'J' // job as JSON
	kindBlock = 'B' // length in four bytes; one byte, 1 when there is a processor to spare
	kindEnd   = 'E' // the stream has ended, and is what it should be
	kindSpace = 'S' // answer to a question: free bytes, eight bytes

	// From the worker.
	kindFree     = 'F' // the oldest block may be written again
	kindQuestion = 'Q' // how much space is there?
	kindResult   = 'R' // result as JSON; nothing follows
	kindFailure  = 'X' // failure as JSON; nothing follows
)

const (
	headerSize = 5
	maxJob     = 4 << 10
	// maxResult bounds the list of what is left to do in a layer, in bytes of JSON.
	maxResult = 16 << 20
)

// errProtocol is a message that no honest peer sends.
var errProtocol = fmt.Errorf("unpacking process sent a malformed message: %w", errdefs.ErrInternal)

// maxContent is the longest content of a kind of message; -1 for unknown kinds.
func maxContent(kind byte) int {
	switch kind {
	case kindEnd, kindFree, kindQuestion:
		return 0
	case kindBlock:
		return 5
	case kindSpace:
		return 8
	case kindJob:
		return maxJob
	case kindFailure:
		return 8 * maxFailure
	case kindResult:
		return maxResult
	}
	return -1
}

// send writes a message at once.
func send(w io.Writer, kind byte, content []byte) error {
	buf := make([]byte, headerSize, headerSize+len(content))
	buf[0] = kind
	binary.LittleEndian.PutUint32(buf[1:], uint32(len(content)))
	_, err := w.Write(append(buf, content...))
	return err
}

// receive reads a message. io.EOF is the end of the connection between two messages.
func receive(r io.Reader) (kind byte, content []byte, err error) {
	var header [headerSize]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return 0, nil, err
	}
	n := binary.LittleEndian.Uint32(header[1:])
	if limit := maxContent(header[0]); limit < 0 || int64(n) > int64(limit) {
		return 0, nil, errProtocol
	}
	content = make([]byte, n)
	if _, err := io.ReadFull(r, content); err != nil {
		return 0, nil, io.ErrUnexpectedEOF
	}
	return header[0], content, nil
}

func blockMessage(n int, spare bool) []byte {
	content := binary.LittleEndian.AppendUint32(nil, uint32(n))
	if spare {
		return append(content, 1)
	}
	return append(content, 0)
}
