package transport

import (
	"encoding/binary"
	"errors"
	"io"
	"sync/atomic"
	"time"
)

// farewellTimeout bounds how long a host that reads nothing can hold up the end of its session.
const farewellTimeout = time.Second

// goAway is yamux's frame that ends a session with a protocol error: version 0, type 3, no flags, stream 0, code 1.
var goAway = binary.BigEndian.AppendUint32([]byte{0, 3, 0, 0, 0, 0, 0, 0}, 1)

// farewell tells the host that its session is over before it closes the channel. A serial port cannot be hung up from
// the guest: a host whose session was dropped, for instance because the last bytes of an earlier host spoilt it, would
// wait for ever.
type farewell struct {
	io.ReadWriteCloser
	left atomic.Bool // the host hung up first
}

// Read implements io.Reader.
func (f *farewell) Read(p []byte) (int, error) {
	n, err := f.ReadWriteCloser.Read(p)
	if errors.Is(err, io.EOF) {
		f.left.Store(true)
	}
	return n, err
}

// Close implements io.Closer.
func (f *farewell) Close() error {
	var err error
	w, bounded := f.ReadWriteCloser.(interface{ SetWriteDeadline(time.Time) error })
	if bounded && !f.left.Load() && w.SetWriteDeadline(time.Now().Add(farewellTimeout)) == nil {
		_, err = f.Write(goAway)
	}
	return errors.Join(err, f.ReadWriteCloser.Close())
}
