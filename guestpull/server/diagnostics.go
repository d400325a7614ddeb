package server

import (
	"context"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"

	agentpb "github.com/coffer-project/coffer/proto/agent"
	guestpb "github.com/coffer-project/coffer/proto/guestpull/v1"
	healthpb "github.com/coffer-project/coffer/proto/health"
)

// protocolVersion is the version of the agent protocol that this agent speaks, as Kata's agent gives it.
const protocolVersion = "0.0.1"

// Check tells that the agent takes requests.
func (s *service) Check(context.Context, *healthpb.CheckRequest) (*healthpb.HealthCheckResponse, error) {
	return &healthpb.HealthCheckResponse{Status: healthpb.HealthCheckResponse_SERVING}, nil
}

// Version names the protocol and the agent.
func (s *service) Version(context.Context, *healthpb.CheckRequest) (*healthpb.VersionCheckResponse, error) {
	return &healthpb.VersionCheckResponse{GrpcVersion: protocolVersion, AgentVersion: s.AgentVersion}, nil
}

// GetDiagnosticData returns a container's termination message, the only kind there is.
func (s *service) GetDiagnosticData(_ context.Context, r *agentpb.GetDiagnosticDataRequest) (*agentpb.GetDiagnosticDataResponse, error) {
	if r.GetLogType() != "termination_log" {
		return nil, fmt.Errorf("diagnostic data of type %.32q: %w", r.GetLogType(), errdefs.ErrInvalidArgument)
	}
	data, err := s.Containers.TerminationLog(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	return &agentpb.GetDiagnosticDataResponse{Data: strings.ToValidUTF8(string(data), "?")}, nil
}

// GetBootReport returns how long the steps of the guest's start took.
func (s *service) GetBootReport(context.Context, *guestpb.GetBootReportRequest) (*guestpb.BootReport, error) {
	out := &guestpb.BootReport{}
	for _, p := range s.BootPhases() {
		out.Phases = append(out.Phases, &guestpb.Phase{Name: p.Name, Micros: p.Took.Microseconds()})
	}
	return out, nil
}

// GetPullReport returns how a container's image came in, and what of its process is the image's.
func (s *service) GetPullReport(_ context.Context, r *guestpb.GetPullReportRequest) (*guestpb.PullReport, error) {
	report, err := s.Containers.PullReport(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	out := report.Proto()
	parts, err := s.Containers.ProcessOrigin(r.GetContainerId())
	switch {
	case err == nil:
		out.Process = parts.Proto()
	case !errdefs.IsNotFound(err): // the image may be there before the process is
		return nil, err
	}
	return out, nil
}

// GetContainerUser returns who a container's first process runs as.
func (s *service) GetContainerUser(_ context.Context, r *guestpb.GetContainerUserRequest) (*guestpb.ContainerUser, error) {
	user, err := s.Containers.User(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	return &guestpb.ContainerUser{Uid: user.UID, Gid: user.GID, AdditionalGids: user.Groups}, nil
}

// WaitPull answers when there is news of a container's pull.
func (s *service) WaitPull(ctx context.Context, r *guestpb.WaitPullRequest) (*guestpb.PullProgress, error) {
	progress, err := s.Pulls.Wait(ctx, r.GetContainerId(), r.GetSeen())
	if err != nil {
		return nil, err
	}
	return progress.Proto(), nil
}
