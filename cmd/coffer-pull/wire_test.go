package main

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	rt "github.com/coffer-project/coffer/integration/registrytest"
	"github.com/coffer-project/coffer/integration/require"
)

// field is a length-delimited field of a protobuf message.
func field(number byte, value []byte) []byte {
	out := []byte{number<<3 | 2}
	return append(binary.AppendUvarint(out, uint64(len(value))), value...)
}

// frame is a message of ttrpc: length, stream, type and flags, and then the message.
func frame(stream uint32, kind byte, message []byte) []byte {
	out := binary.BigEndian.AppendUint32(nil, uint32(len(message)))
	out = binary.BigEndian.AppendUint32(out, stream)
	return append(append(out, kind, 0), message...)
}

// TestWire speaks to the service byte by byte, as Kata's agent does, without any of our generated code. The names and
// numbers are those of the Confidential Data Hub's api.proto and of ttrpc's request.proto.
func TestWire(t *testing.T) {
	require.Root(t)
	r := rt.Start(t)
	s := startService(t, r)
	ref, bundle := demo(r), filepath.Join(s.root, "b")
	if err := os.Mkdir(bundle, 0o755); err != nil { // the agent has made it
		t.Fatal(err)
	}
	message := bytes.Join([][]byte{
		field(1, []byte("api.ImagePullService")),
		field(2, []byte("PullImage")),
		field(3, append(field(1, []byte(ref)), field(2, []byte(bundle))...)),
		binary.AppendUvarint([]byte{4 << 3}, uint64(time.Minute)), // the caller's patience, in nanoseconds
	}, nil)
	conn, err := net.Dial("unix", s.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write(frame(1, 1, message)); err != nil {
		t.Fatal(err)
	}
	header := make([]byte, 10)
	if _, err := io.ReadFull(conn, header); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, binary.BigEndian.Uint32(header))
	if _, err := io.ReadFull(conn, answer); err != nil {
		t.Fatal(err)
	}
	defer unmount(t, bundle)
	_, raw, ok := r.GetManifest("demo", "1")
	if !ok {
		t.Fatal("the registry lost the image")
	}
	digest := rt.Descriptor("", raw).Digest.String()
	// A response has its payload in field 2, and no status in field 1 when all is well.
	want := frame(1, 2, field(2, field(1, []byte(digest))))
	if got := append(header, answer...); !bytes.Equal(got, want) {
		t.Errorf("answer is\n%x, want\n%x", got, want)
	}
	conn.Close()
	s.stop(t)
}
