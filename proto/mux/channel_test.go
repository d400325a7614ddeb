package mux

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/hashicorp/yamux"
)

// recorder is a port that keeps what is written to it, write by write.
type recorder struct {
	net.Conn
	mu     sync.Mutex
	writes [][]byte
}

func (r *recorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	r.writes = append(r.writes, bytes.Clone(p))
	r.mu.Unlock()
	return r.Conn.Write(p)
}

// TestChannelWritesWholeFrames lets a session speak through a port: each write is a frame, and nothing is lost.
func TestChannelWritesWholeFrames(t *testing.T) {
	near, far := net.Pipe()
	port := &recorder{Conn: near}
	client, err := yamux.Client(NewChannel(port), Config())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := yamux.Server(NewChannel(far), Config())
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	go func() {
		stream, err := server.Accept()
		if err != nil {
			return
		}
		_, _ = io.Copy(stream, stream)
		_ = stream.Close()
	}()

	stream, err := client.Open()
	if err != nil {
		t.Fatal(err)
	}
	sent := bytes.Repeat([]byte("0123456789abcde\n"), 3<<20/16)
	go func() {
		_, _ = stream.Write(sent[:1])
		_, _ = stream.Write(sent[1:])
		_ = stream.Close()
	}()
	got, err := io.ReadAll(stream)
	if err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("%d bytes came back of %d: %v", len(got), len(sent), err)
	}
	port.mu.Lock()
	defer port.mu.Unlock()
	data := 0
	for _, frame := range port.writes {
		want := frameSize
		if len(frame) >= frameSize && frame[frameType] == typeData {
			want += int(binary.BigEndian.Uint32(frame[frameLength:]))
			data += want - frameSize
		}
		if len(frame) != want {
			t.Fatalf("a write of %d bytes is no frame: %x", len(frame), frame[:min(len(frame), frameSize)])
		}
	}
	if data != len(sent) {
		t.Errorf("frames carry %d bytes, want %d", data, len(sent))
	}
}

// TestChannelTellsErrors: a write that fails is an error of the write that brought the data.
func TestChannelTellsErrors(t *testing.T) {
	near, far := net.Pipe()
	far.Close()
	c := NewChannel(near)
	header := binary.BigEndian.AppendUint32(make([]byte, frameLength), 3)
	if n, err := c.Write(header); n != len(header) || err != nil {
		t.Fatalf("wrote %d: %v", n, err)
	}
	if n, err := c.Write([]byte("abc")); n != 0 || err == nil {
		t.Errorf("wrote %d: %v", n, err)
	}
}
