package agent

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// nativeError turns the outcome of one call, an error of the transport or a status in the response, into an error of
// an errdefs class. It is the only place where RPC status is read.
func nativeError(err error, resp *ttrpc.Response) error {
	if err == nil {
		if resp.Status == nil || resp.Status.Code == int32(codes.OK) {
			return nil
		}
		return errgrpc.ToNative(status.ErrorProto(resp.Status))
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if _, isStatus := status.FromError(err); isStatus {
		return errgrpc.ToNative(err)
	}
	// What is left is a broken connection, in the many words of sockets and pipes.
	return fmt.Errorf("connection to guest lost: %w: %w", err, errdefs.ErrUnavailable)
}
