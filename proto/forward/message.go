package forward

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	guestpull "github.com/coffer-project/coffer/proto/guestpull/v1"
)

// Feature is the name under which a guest offers forwarding, among the extra features of its details.
const Feature = "coffer-forward"

const (
	headerSize = 4
	// maxMessage bounds request and response, in bytes.
	maxMessage = 8 << 10
)

// Ask requests a connection to port and reads the answer; host side. The error has the class that the guest gave, and
// errdefs.ErrInvalidArgument for an answer that is none. The caller bounds the time.
func Ask(stream io.ReadWriter, port uint16) error {
	if err := writeMessage(stream, &guestpull.ForwardRequest{Port: uint32(port)}); err != nil {
		return fmt.Errorf("ask guest for port %d: %w", port, err)
	}
	answer := new(guestpull.ForwardResponse)
	if err := readMessage(stream, answer); err != nil {
		return fmt.Errorf("read the guest's answer for port %d: %w", port, err)
	}
	if code := codes.Code(answer.GetCode()); code != codes.OK {
		return fmt.Errorf("guest refused port %d: %w", port, errgrpc.ToNative(status.Error(code, answer.GetMessage())))
	}
	return nil
}

// ReadRequest reads what the host asks for; guest side. It fails with errdefs.ErrInvalidArgument for bytes that are no
// request. The caller bounds the time.
func ReadRequest(stream io.Reader) (*guestpull.ForwardRequest, error) {
	request := new(guestpull.ForwardRequest)
	if err := readMessage(stream, request); err != nil {
		return nil, fmt.Errorf("read forward request: %w", err)
	}
	return request, nil
}

// Answer tells the host whether the connection is open; guest side. err is nil or a status of package
// google.golang.org/grpc/status.
func Answer(stream io.Writer, err error) error {
	s, _ := status.FromError(err)
	if err := writeMessage(stream, &guestpull.ForwardResponse{Code: uint32(s.Code()), Message: s.Message()}); err != nil {
		return fmt.Errorf("answer forward request: %w", err)
	}
	return nil
}

func writeMessage(w io.Writer, m proto.Message) error {
	raw, err := proto.MarshalOptions{}.MarshalAppend(make([]byte, headerSize), m)
	if err != nil {
		return err
	}
	if len(raw)-headerSize > maxMessage {
		return fmt.Errorf("message of %d bytes, limit %d: %w", len(raw)-headerSize, maxMessage, errdefs.ErrInvalidArgument)
	}
	binary.BigEndian.PutUint32(raw, uint32(len(raw)-headerSize))
	_, err = w.Write(raw)
	return err
}

func readMessage(r io.Reader, m proto.Message) error {
	var header [headerSize]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return err
	}
	size := binary.BigEndian.Uint32(header[:])
	if size > maxMessage {
		return fmt.Errorf("message of %d bytes, limit %d: %w", size, maxMessage, errdefs.ErrInvalidArgument)
	}
	raw := make([]byte, size)
	if _, err := io.ReadFull(r, raw); err != nil {
		return err
	}
	if err := proto.Unmarshal(raw, m); err != nil {
		return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	return nil
}
