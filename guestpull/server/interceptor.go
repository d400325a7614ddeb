package server

import (
	"context"
	"fmt"
	"path"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/log"
	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/coffer-project/coffer/guestpull/container"
)

// maxReason bounds what an error tells the host, in bytes.
const maxReason = 2048

// quiet are the methods that a shim calls all the time.
var quiet = map[string]bool{
	"Check": true, "ReadStdout": true, "ReadStderr": true, "WriteStdin": true, "CopyFile": true, "RemoveFiles": true, "StatsContainer": true,
	"GetOOMEvent": true, "GetMetrics": true, "TtyWinResize": true, "WaitProcess": true, "WaitPull": true,
}

// early are the methods that need nothing but the agent: a shim asks them while the rest of the guest still starts.
var early = map[string]bool{"Check": true, "Version": true, "GetGuestDetails": true}

// gate is what every request passes before anything is done, and what is said of it afterwards.
type gate struct {
	engine   Policy
	complete func(context.Context) error
}

// admit decides about a decoded request: identifiers, then policy, then whether the guest is ready for it.
func (g gate) admit(ctx context.Context, name string, request proto.Message, fields log.Fields) error {
	if err := checkIDs(request, fields); err != nil {
		return err
	}
	if err := g.engine.Allow(ctx, name, request); err != nil || early[name] {
		return err
	}
	return g.complete(ctx)
}

// record logs the outcome of a request and returns the error as the host may see it.
func (g gate) record(ctx context.Context, name string, fields log.Fields, err error) error {
	if err == nil {
		entry := log.G(ctx).WithFields(fields)
		if quiet[name] {
			entry.Trace("call answered")
		} else {
			entry.Debug("call answered")
		}
		return nil
	}
	converted := toStatus(err)
	// The class only: the text may quote what the host sent.
	fields["code"] = status.Code(converted).String()
	log.G(ctx).WithFields(fields).Info("call refused or failed")
	return converted
}

// intercept puts the gate before every call. The request is decoded inside the method's own code, so the checks hang on the
// decoding: a method cannot see a request that did not pass them.
func (g gate) intercept(ctx context.Context, unmarshal ttrpc.Unmarshaler, info *ttrpc.UnaryServerInfo, method ttrpc.Method) (any, error) {
	name := path.Base(info.FullMethod)
	fields := log.Fields{"method": name}
	start := time.Now()
	answer, err := method(ctx, func(request any) error {
		if err := unmarshal(request); err != nil {
			return fmt.Errorf("request of %s cannot be decoded: %w", name, errdefs.ErrInvalidArgument)
		}
		message, ok := request.(proto.Message)
		if !ok {
			return fmt.Errorf("request of %s is not a message: %w", name, errdefs.ErrInvalidArgument)
		}
		return g.admit(ctx, name, message, fields)
	})
	fields["t_call"] = time.Since(start)
	if err := g.record(ctx, name, fields, err); err != nil {
		return nil, err
	}
	return answer, nil
}

// checkIDs refuses identifiers that are not plain names, and notes them for the log.
func checkIDs(request any, fields log.Fields) error {
	if r, ok := request.(interface{ GetContainerId() string }); ok {
		if err := container.CheckID("container", r.GetContainerId()); err != nil {
			return err
		}
		fields["container"] = r.GetContainerId()
	}
	if r, ok := request.(interface{ GetExecId() string }); ok && r.GetExecId() != "" {
		if err := container.CheckID("exec", r.GetExecId()); err != nil {
			return err
		}
		fields["exec"] = r.GetExecId()
	}
	if r, ok := request.(interface{ GetSandboxId() string }); ok && r.GetSandboxId() != "" {
		if err := container.CheckID("sandbox", r.GetSandboxId()); err != nil {
			return err
		}
		fields["sandbox"] = r.GetSandboxId()
	}
	return nil
}

// toStatus turns an error into what goes over the wire: a class and a bounded text.
func toStatus(err error) error {
	converted := errgrpc.ToGRPC(err)
	s, ok := status.FromError(converted)
	if !ok {
		s = status.New(codes.Unknown, converted.Error())
	}
	text := strings.ToValidUTF8(s.Message(), "?")
	if len(text) > maxReason {
		text = strings.ToValidUTF8(text[:maxReason], "") + " ..."
	}
	return status.Error(s.Code(), text)
}
