package server

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/emptypb"

	agentpb "github.com/coffer-project/coffer/proto/agent"
)

// The methods of the protocol that this guest does not carry out. Some are denied by every policy before they get here; they are
// refused here as well, so that no policy can open what has no code behind it.

func refused(what, reason string) error {
	return fmt.Errorf("%s is not offered by this guest: %s: %w", what, reason, errdefs.ErrNotImplemented)
}

// SetPolicy is refused: the policy is part of what is measured.
func (s *service) SetPolicy(context.Context, *agentpb.SetPolicyRequest) (*emptypb.Empty, error) {
	return nil, refused("SetPolicy", "the policy is fixed when the guest starts")
}

// SetGuestDateTime is refused: certificates are judged by the guest's clock.
func (s *service) SetGuestDateTime(context.Context, *agentpb.SetGuestDateTimeRequest) (*emptypb.Empty, error) {
	return nil, refused("SetGuestDateTime", "the guest keeps its own clock")
}

// GetIPTables is refused: there are no packet filters in this guest.
func (s *service) GetIPTables(context.Context, *agentpb.GetIPTablesRequest) (*agentpb.GetIPTablesResponse, error) {
	return nil, refused("GetIPTables", "it has no packet filters")
}

// SetIPTables is refused: there are no packet filters in this guest.
func (s *service) SetIPTables(context.Context, *agentpb.SetIPTablesRequest) (*agentpb.SetIPTablesResponse, error) {
	return nil, refused("SetIPTables", "it has no packet filters")
}

// MemHotplugByProbe is refused: memory is fixed at the start.
func (s *service) MemHotplugByProbe(context.Context, *agentpb.MemHotplugByProbeRequest) (*emptypb.Empty, error) {
	return nil, refused("MemHotplugByProbe", "memory is fixed when the machine starts")
}

// AddSwap is refused: it would write guest memory to the host's disk.
func (s *service) AddSwap(context.Context, *agentpb.AddSwapRequest) (*emptypb.Empty, error) {
	return nil, refused("AddSwap", "guest memory must not leave the guest")
}

// AddSwapPath is refused: it would write guest memory to the host's disk.
func (s *service) AddSwapPath(context.Context, *agentpb.AddSwapPathRequest) (*emptypb.Empty, error) {
	return nil, refused("AddSwapPath", "guest memory must not leave the guest")
}

// MemAgentMemcgSet is refused: there is no memory agent.
func (s *service) MemAgentMemcgSet(context.Context, *agentpb.MemAgentMemcgConfig) (*emptypb.Empty, error) {
	return nil, refused("MemAgentMemcgSet", "it has no memory agent")
}

// MemAgentCompactSet is refused: there is no memory agent.
func (s *service) MemAgentCompactSet(context.Context, *agentpb.MemAgentCompactConfig) (*emptypb.Empty, error) {
	return nil, refused("MemAgentCompactSet", "it has no memory agent")
}

// UpdateEphemeralMounts is refused: volumes in memory keep the size they were made with.
func (s *service) UpdateEphemeralMounts(context.Context, *agentpb.UpdateEphemeralMountsRequest) (*emptypb.Empty, error) {
	return nil, refused("UpdateEphemeralMounts", "volumes in memory keep their size")
}

// RemoveStaleVirtiofsShareMounts is refused: nothing is shared with the host's file system.
func (s *service) RemoveStaleVirtiofsShareMounts(context.Context, *agentpb.RemoveStaleVirtiofsShareMountsRequest) (*emptypb.Empty, error) {
	return nil, refused("RemoveStaleVirtiofsShareMounts", "no file system is shared with the host")
}

// GetVolumeStats is refused: the guest mounts no file system of a block volume, containers get the device itself.
func (s *service) GetVolumeStats(context.Context, *agentpb.VolumeStatsRequest) (*agentpb.VolumeStatsResponse, error) {
	return nil, refused("GetVolumeStats", "it mounts no block volumes")
}

// ResizeVolume is refused: the guest mounts no file system of a block volume, containers get the device itself.
func (s *service) ResizeVolume(context.Context, *agentpb.ResizeVolumeRequest) (*emptypb.Empty, error) {
	return nil, refused("ResizeVolume", "it mounts no block volumes")
}
