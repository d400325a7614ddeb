package bundle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/emptypb"

	agentpb "github.com/coffer-project/coffer/proto/agent"
)

// limits bound what is copied into a guest, where it takes memory. Larger volumes need another way.
type limits struct {
	// file and tree bound one file and all files of one mount, in bytes.
	file, tree int64
	// entries and depth bound the files and folders of one mount.
	entries, depth int
}

var copyLimits = limits{file: 32 << 20, tree: 64 << 20, entries: 4096, depth: 32}

// chunk is the data of one request in bytes; ttrpc carries 4 MiB.
const chunk = 1 << 20

// dirMode is for parents that the guest makes on its own.
const dirMode = unix.S_IFDIR | 0o755

// Copier is the guest's side of a copy; the agent client has it.
type Copier interface {
	CopyFile(ctx context.Context, req *agentpb.CopyFileRequest) (*emptypb.Empty, error)
}

// CopyJob is one file, folder or symbolic link to make in the guest.
type CopyJob struct {
	// HostPath is what to read; empty where the job brings its Content, or needs none.
	HostPath string
	// GuestPath is what to make.
	GuestPath string
	// Mode has the file type (S_IFREG, S_IFDIR or S_IFLNK) and the permissions.
	Mode     uint32
	UID, GID uint32
	// Content is the data of a file that exists on no host, or the target of a link.
	Content []byte
}

// Copy does the jobs in order. Files are read now, not when they were planned; one that has changed its type or grown
// beyond the limits fails with errdefs.ErrFailedPrecondition.
func Copy(ctx context.Context, guest Copier, jobs []CopyJob) error {
	for _, job := range jobs {
		if err := job.send(ctx, guest); err != nil {
			return fmt.Errorf("copy %s into guest: %w", job.name(), err)
		}
	}
	return nil
}

func (j CopyJob) name() string {
	if j.HostPath != "" {
		return j.HostPath
	}
	return j.GuestPath
}

func (j CopyJob) send(ctx context.Context, guest Copier) error {
	switch j.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return j.request(ctx, guest, 0, 0, nil)
	case unix.S_IFLNK:
		return j.request(ctx, guest, int64(len(j.Content)), 0, j.Content)
	case unix.S_IFREG:
	default:
		return fmt.Errorf("file type %o cannot be copied: %w", j.Mode&unix.S_IFMT, errdefs.ErrInvalidArgument)
	}
	if j.HostPath == "" {
		return j.chunks(ctx, guest, readerOf(j.Content), int64(len(j.Content)))
	}
	file, err := openRegular(j.HostPath)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if err := copyLimits.checkFile(j.HostPath, info.Size()); err != nil {
		return err
	}
	return j.chunks(ctx, guest, file, info.Size())
}

// chunks sends size bytes; an empty file is one empty request.
func (j CopyJob) chunks(ctx context.Context, guest Copier, r io.Reader, size int64) error {
	buf := make([]byte, min(size, chunk))
	for offset := int64(0); ; {
		piece := buf[:min(size-offset, chunk)]
		if _, err := io.ReadFull(r, piece); err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				return fmt.Errorf("file became shorter while it was read: %w", errdefs.ErrFailedPrecondition)
			}
			return err
		}
		if err := j.request(ctx, guest, size, offset, piece); err != nil {
			return err
		}
		if offset += int64(len(piece)); offset >= size {
			return nil
		}
	}
}

func (j CopyJob) request(ctx context.Context, guest Copier, size, offset int64, data []byte) error {
	_, err := guest.CopyFile(ctx, &agentpb.CopyFileRequest{
		Path:     j.GuestPath,
		FileSize: size,
		FileMode: j.Mode,
		DirMode:  dirMode,
		// The wire has signed numbers; ids above 2^31 keep their bits.
		Uid:    int32(j.UID),
		Gid:    int32(j.GID),
		Offset: offset,
		Data:   data,
	})
	return err
}

// openRegular opens a file that is one now, never a pipe that would block or a device that would act.
func openRegular(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is no regular file any more: %w", path, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	return file, nil
}

func (l limits) checkFile(path string, size int64) error {
	if size > l.file {
		return tooLarge(path, fmt.Sprintf("file of %d bytes", size), fmt.Sprintf("%d bytes a file", l.file))
	}
	return nil
}

func tooLarge(path, what, limit string) error {
	return fmt.Errorf("volume %s has %s, more than the %s that are copied into a guest; "+
		"use an emptyDir, or put the data into the image: %w", path, what, limit, errdefs.ErrFailedPrecondition)
}
