package agenttest

import (
	"context"
	"fmt"
	"maps"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/emptypb"

	agentpb "github.com/coffer-project/coffer/proto/agent"
	guestpullpb "github.com/coffer-project/coffer/proto/guestpull/v1"
)

// File is something that was copied into the guest.
type File struct {
	// Mode has the type and the permissions.
	Mode uint32
	// Data is the content of a file so far, or the target of a link.
	Data string
}

// Files returns what was copied in and not removed, by path.
func (g *Guest) Files() map[string]File {
	g.service.mu.Lock()
	defer g.service.mu.Unlock()
	return maps.Clone(g.service.files)
}

// File returns the content of a file.
func (g *Guest) File(path string) ([]byte, bool) {
	g.service.mu.Lock()
	defer g.service.mu.Unlock()
	file, ok := g.service.files[path]
	return []byte(file.Data), ok
}

// SetTermination leaves a container's last message.
func (g *Guest) SetTermination(containerID, message string) {
	g.service.mu.Lock()
	defer g.service.mu.Unlock()
	g.service.last[containerID] = message
}

// CopyFile is strict about what is in the way of a file or link as our own guest is, or like Kata's agent replaces whole
// folders by it.
func (s *service) CopyFile(_ context.Context, req *agentpb.CopyFileRequest) (*emptypb.Empty, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	name := req.GetPath()
	kind := req.GetFileMode() & unix.S_IFMT
	there, exists := s.files[name]
	isDir := exists && there.Mode&unix.S_IFMT == unix.S_IFDIR
	if kind == unix.S_IFDIR && exists && !isDir && !s.stock || kind != unix.S_IFDIR && isDir && !s.stock {
		return nil, fmt.Errorf("%s is of another type: %w", name, errdefs.ErrFailedPrecondition)
	}
	if kind != unix.S_IFDIR && isDir {
		s.removeTree(name)
		there = File{}
	}
	if req.GetOffset() == 0 {
		there.Data = ""
	}
	if int64(len(there.Data)) != req.GetOffset() {
		return nil, fmt.Errorf("%s has %d bytes, got offset %d: %w", name, len(there.Data), req.GetOffset(), errdefs.ErrOutOfRange)
	}
	for dir := path.Dir(name); dir != "/" && dir != "."; dir = path.Dir(dir) {
		if _, ok := s.files[dir]; !ok {
			s.files[dir] = File{Mode: req.GetDirMode()}
		}
	}
	s.files[name] = File{Mode: req.GetFileMode(), Data: there.Data + string(req.GetData())}
	return &emptypb.Empty{}, nil
}

func (s *service) RemoveFiles(_ context.Context, req *guestpullpb.RemoveFilesRequest) (*guestpullpb.RemoveFilesResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range req.GetPaths() {
		s.removeTree(name)
	}
	return &guestpullpb.RemoveFilesResponse{}, nil
}

// removeTree is called with the lock held.
func (s *service) removeTree(name string) {
	maps.DeleteFunc(s.files, func(other string, _ File) bool { return other == name || strings.HasPrefix(other, name+"/") })
}

func (s *service) GetDiagnosticData(_ context.Context, req *agentpb.GetDiagnosticDataRequest) (*agentpb.GetDiagnosticDataResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	message, ok := s.last[req.GetContainerId()]
	if !ok {
		return nil, fmt.Errorf("container %s has no termination log: %w", req.GetContainerId(), errdefs.ErrNotFound)
	}
	return &agentpb.GetDiagnosticDataResponse{Data: message}, nil
}
