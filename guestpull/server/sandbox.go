package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/emptypb"

	agentpb "github.com/coffer-project/coffer/proto/agent"
	"github.com/coffer-project/coffer/proto/forward"
)

// maxSeed bounds what the host may mix into the random pool in one call, in bytes.
const maxSeed = 4096

// CreateSandbox makes what the pod's containers share.
func (s *service) CreateSandbox(ctx context.Context, r *agentpb.CreateSandboxRequest) (*emptypb.Empty, error) {
	return done(s.Sandbox.Create(ctx, r))
}

// DestroySandbox removes all containers, then what they shared.
func (s *service) DestroySandbox(ctx context.Context, _ *agentpb.DestroySandboxRequest) (*emptypb.Empty, error) {
	if err := s.Containers.RemoveAll(ctx); err != nil {
		return nil, fmt.Errorf("destroy sandbox: %w", err)
	}
	return done(s.Sandbox.Destroy(ctx))
}

// GetOOMEvent blocks until a container has lost a process for lack of memory.
func (s *service) GetOOMEvent(ctx context.Context, _ *agentpb.GetOOMEventRequest) (*agentpb.OOMEvent, error) {
	id, err := s.Sandbox.NextOOM(ctx)
	if err != nil {
		return nil, err
	}
	return &agentpb.OOMEvent{ContainerId: id}, nil
}

// GetGuestDetails says what this agent is able to do.
func (s *service) GetGuestDetails(_ context.Context, r *agentpb.GuestDetailsRequest) (*agentpb.GuestDetailsResponse, error) {
	out := &agentpb.GuestDetailsResponse{
		AgentDetails: &agentpb.AgentDetails{
			Version:         s.AgentVersion,
			InitDaemon:      s.Init,
			StorageHandlers: []string{"ephemeral", "image_guest_pull", "local"},
			SupportsSeccomp: true,
			ExtraFeatures:   []string{"coffer-diagnostics"},
		},
	}
	if s.Forwards {
		out.AgentDetails.ExtraFeatures = append(out.AgentDetails.ExtraFeatures, forward.Feature)
	}
	if s.Scratch {
		out.AgentDetails.ExtraFeatures = append(out.AgentDetails.ExtraFeatures, "coffer-scratch")
	}
	if r.GetMemBlockSize() {
		// Missing where the kernel has no memory hot-plug; the host then gets zero, as from any such guest.
		if text, err := os.ReadFile("/sys/devices/system/memory/block_size_bytes"); err == nil {
			out.MemBlockSizeBytes, _ = strconv.ParseUint(strings.TrimSpace(string(text)), 16, 64)
		}
	}
	return out, nil
}

// ReseedRandomDev mixes data of the host into the random pool, without counting it as entropy: it cannot make the pool worse.
func (s *service) ReseedRandomDev(_ context.Context, r *agentpb.ReseedRandomDevRequest) (_ *emptypb.Empty, retErr error) {
	if len(r.GetData()) == 0 || len(r.GetData()) > maxSeed {
		return nil, fmt.Errorf("seed of %d bytes, 1 to %d are taken: %w", len(r.GetData()), maxSeed, errdefs.ErrInvalidArgument)
	}
	f, err := os.OpenFile("/dev/urandom", os.O_WRONLY, 0)
	if err != nil {
		return nil, fmt.Errorf("reseed random device: %w", err)
	}
	defer func() { retErr = errors.Join(retErr, f.Close()) }()
	if _, err := f.Write(r.GetData()); err != nil {
		return nil, fmt.Errorf("reseed random device: %w", err)
	}
	return &emptypb.Empty{}, nil
}

// OnlineCPUMem is asked by shims that have hot-plugged something. Nothing is ever hot-plugged into this guest, so it only confirms
// what is there from the start.
func (s *service) OnlineCPUMem(_ context.Context, r *agentpb.OnlineCPUMemRequest) (*emptypb.Empty, error) {
	if want := r.GetNbCpus(); want > uint32(runtime.NumCPU()) {
		return nil, fmt.Errorf("guest has %d processors, %d are wanted: hot-plug is not offered, size the machine at its start: %w",
			runtime.NumCPU(), want, errdefs.ErrNotImplemented)
	}
	return &emptypb.Empty{}, nil
}
