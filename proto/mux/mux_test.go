package mux

import (
	"bytes"
	"errors"
	"io"
	"net"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/hashicorp/yamux"
)

func TestHeaderBytes(t *testing.T) {
	var b bytes.Buffer
	if err := WriteHeader(&b, AgentPort); err != nil {
		t.Fatal(err)
	}
	if got, want := b.Bytes(), []byte{'C', 'F', 'M', '1', 0, 0, 4, 0}; !bytes.Equal(got, want) {
		t.Fatalf("header is % x, want % x", got, want)
	}
	port, err := ReadHeader(&b)
	if err != nil || port != AgentPort {
		t.Fatalf("read port %d, %v", port, err)
	}
}

func TestReadHeaderRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		in   string
		want error
	}{
		"empty":         {"", io.EOF},
		"short":         {"CFM1\x00\x00\x04", io.ErrUnexpectedEOF},
		"other magic":   {"CFM2\x00\x00\x04\x00", errdefs.ErrInvalidArgument},
		"another proto": {"GET / HTTP/1.1\r\n", errdefs.ErrInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := ReadHeader(bytes.NewReader([]byte(test.in))); !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
}

func TestReply(t *testing.T) {
	for name, test := range map[string]struct {
		reply []byte
		want  error
	}{
		"accepted":    {[]byte{0}, nil},
		"no listener": {[]byte{1}, ErrNoListener},
		"unknown":     {[]byte{2}, errdefs.ErrInvalidArgument},
		"nothing":     {nil, io.EOF},
	} {
		t.Run(name, func(t *testing.T) {
			if err := ReadReply(bytes.NewReader(test.reply)); !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
	for _, accepted := range []bool{true, false} {
		var b bytes.Buffer
		if err := WriteReply(&b, accepted); err != nil {
			t.Fatal(err)
		}
		if err := ReadReply(&b); (err == nil) != accepted {
			t.Errorf("reply %v was read as %v", accepted, err)
		}
	}
	if !errdefs.IsUnavailable(ErrNoListener) {
		t.Error("a missing listener must look unavailable, so that dialers try again")
	}
}

// TestSession runs both ends over a pipe, as the serial port does.
func TestSession(t *testing.T) {
	if err := yamux.VerifyConfig(Config()); err != nil {
		t.Fatal(err)
	}
	hostSide, guestSide := net.Pipe()
	host, err := yamux.Client(hostSide, Config())
	if err != nil {
		t.Fatal(err)
	}
	guest, err := yamux.Server(guestSide, Config())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = host.Close()
		_ = guest.Close()
	})
	guestDone := make(chan error, 1)
	go func() { guestDone <- serveTwo(guest) }()

	for port, want := range map[uint32]error{AgentPort: nil, 9: ErrNoListener} {
		stream, err := host.Open()
		if err != nil {
			t.Fatal(err)
		}
		if err := WriteHeader(stream, port); err != nil {
			t.Fatal(err)
		}
		if err := ReadReply(stream); !errors.Is(err, want) {
			t.Errorf("port %d: got %v, want %v", port, err, want)
		}
		if want == nil {
			rest, err := io.ReadAll(stream)
			if err != nil || string(rest) != "hello" {
				t.Errorf("stream carried %q, %v", rest, err)
			}
		}
		_ = stream.Close()
	}
	if err := <-guestDone; err != nil {
		t.Error(err)
	}
}

func serveTwo(guest *yamux.Session) error {
	for range 2 {
		stream, err := guest.Accept()
		if err != nil {
			return err
		}
		port, err := ReadHeader(stream)
		if err != nil {
			return err
		}
		if err := WriteReply(stream, port == AgentPort); err != nil {
			return err
		}
		if port == AgentPort {
			if _, err := stream.Write([]byte("hello")); err != nil {
				return err
			}
		}
		if err := stream.Close(); err != nil {
			return err
		}
	}
	return nil
}

func FuzzReadHeader(f *testing.F) {
	f.Add([]byte("CFM1\x00\x00\x04\x00rest"))
	f.Add([]byte("CFM"))
	f.Fuzz(func(t *testing.T, data []byte) {
		port, err := ReadHeader(bytes.NewReader(data))
		if err != nil {
			return
		}
		var b bytes.Buffer
		if err := WriteHeader(&b, port); err != nil {
			t.Fatal(err)
		}
		if !bytes.HasPrefix(data, b.Bytes()) {
			t.Errorf("% x was read as port %d, which is written % x", data, port, b.Bytes())
		}
	})
}
