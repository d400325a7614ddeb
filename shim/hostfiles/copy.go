package hostfiles

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/emptypb"

	agentpb "github.com/coffer-project/coffer/proto/agent"
)

// chunk is the data of one request in bytes; ttrpc carries 4 MiB.
const chunk = 1 << 20

// small is the size in bytes up to which files are sent together, underWay how many at a time. A request takes some
// milliseconds under emulation, most of which it waits.
const (
	small    = 64 << 10
	underWay = 8
)

// dirMode is for parents that the guest makes on its own.
const dirMode = unix.S_IFDIR | 0o755

// Copier is the guest's side of a copy; the agent client has it.
type Copier interface {
	CopyFile(ctx context.Context, req *agentpb.CopyFileRequest) (*emptypb.Empty, error)
}

// Job is one file, folder or symbolic link to make in the guest.
type Job struct {
	// Volume is the folder that is copied as a whole, and HostPath what to read below it; without a Volume, HostPath is
	// the whole path of a file. HostPath is empty where the job brings its Content, or needs none.
	Volume, HostPath string
	// GuestPath is what to make.
	GuestPath string
	// Mode has the file type (S_IFREG, S_IFDIR or S_IFLNK) and the permissions.
	Mode     uint32
	UID, GID uint32
	// Content is the data of a file that exists on no host, or the target of a link.
	Content []byte

	limit int64 // of a file's size in bytes
}

// Copy does the jobs. Folders are made in order, and nothing in a folder before it; small files and links are on their way
// together. Files are read now, not when they were planned; one that has changed its type or grown beyond the limits fails
// with errdefs.ErrFailedPrecondition, one that is gone with fs.ErrNotExist. When Copy returns, nothing is under way.
func Copy(ctx context.Context, guest Copier, jobs []Job) error {
	s := &sender{guest: guest}
	defer s.close()
	s.begin(ctx)
	for _, job := range jobs {
		if err := s.send(ctx, job); err != nil {
			// A call under way that has failed is the cause of what was cancelled by it.
			if earlier := s.wait(); earlier != nil {
				return earlier
			}
			return job.failed(err)
		}
	}
	return s.wait()
}

func (j Job) failed(err error) error { return fmt.Errorf("copy %s into guest: %w", j.name(), err) }

func (j Job) name() string {
	if j.HostPath != "" {
		return path.Join(j.Volume, j.HostPath)
	}
	return j.GuestPath
}

// sender holds what jobs have in common: the open folder of their volume, memory for what is read, and what is under way.
type sender struct {
	guest  Copier
	volume *os.File
	buf    []byte

	calls *errgroup.Group
	life  context.Context // of the calls under way: ends when one of them has failed
	stems map[string]bool // of the files under way
}

func (s *sender) close() {
	if s.volume != nil {
		_ = s.volume.Close()
	}
}

func (s *sender) begin(ctx context.Context) {
	s.calls, s.life = errgroup.WithContext(ctx)
	s.calls.SetLimit(underWay)
	s.stems = map[string]bool{}
}

// wait ends what is under way.
func (s *sender) wait() error { return s.calls.Wait() }

// claim waits where a file must not be on its way together with another one: Kata's agent writes files beside their names
// with another extension, where those of files that differ in the extension only would meet.
func (s *sender) claim(ctx context.Context, j Job) error {
	if err := s.life.Err(); err != nil {
		return err
	}
	stem := strings.TrimSuffix(j.GuestPath, path.Ext(j.GuestPath))
	if s.stems[stem] {
		if err := s.wait(); err != nil {
			return err
		}
		s.begin(ctx)
	}
	s.stems[stem] = true
	return nil
}

// dispatch sends a whole small file or link without waiting for the answer.
func (s *sender) dispatch(j Job, data []byte) error {
	life := s.life
	s.calls.Go(func() error {
		if err := s.request(life, j, int64(len(data)), 0, data); err != nil {
			return j.failed(err)
		}
		return nil
	})
	return nil
}

func (s *sender) send(ctx context.Context, j Job) error {
	switch j.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return s.request(ctx, j, 0, 0, nil)
	case unix.S_IFLNK, unix.S_IFREG:
		if err := s.claim(ctx, j); err != nil {
			return err
		}
	default:
		return fmt.Errorf("file type %o cannot be copied: %w", j.Mode&unix.S_IFMT, errdefs.ErrInvalidArgument)
	}
	if j.Mode&unix.S_IFMT == unix.S_IFLNK {
		return s.dispatch(j, j.Content)
	}
	if j.HostPath == "" {
		return s.chunks(ctx, j, bytes.NewReader(j.Content), int64(len(j.Content)))
	}
	file, err := s.open(j)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if err := (Limits{Bytes: j.limit}).withDefaults().checkFile(j.name(), info.Size()); err != nil {
		return err
	}
	if info.Size() > small {
		return s.chunks(ctx, j, file, info.Size())
	}
	data := make([]byte, info.Size())
	if _, err := io.ReadFull(file, data); err != nil {
		return shorter(err)
	}
	return s.dispatch(j, data)
}

// shorter explains the end of a file that was longer when it was opened.
func shorter(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("file became shorter while it was read: %w", errdefs.ErrFailedPrecondition)
	}
	return err
}

// chunks sends size bytes; an empty file is one empty request.
func (s *sender) chunks(ctx context.Context, j Job, r io.Reader, size int64) error {
	if need := int(min(size, chunk)); len(s.buf) < need {
		s.buf = make([]byte, need)
	}
	for offset := int64(0); ; {
		piece := s.buf[:min(size-offset, chunk)]
		if _, err := io.ReadFull(r, piece); err != nil {
			return shorter(err)
		}
		if err := s.request(ctx, j, size, offset, piece); err != nil {
			return err
		}
		if offset += int64(len(piece)); offset >= size {
			return nil
		}
	}
}

func (s *sender) request(ctx context.Context, j Job, size, offset int64, data []byte) error {
	_, err := s.guest.CopyFile(ctx, &agentpb.CopyFileRequest{
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

// open opens a file that is one now, never a pipe that would block or a device that would act, and never through a link
// that somebody has put into the volume since it was planned.
func (s *sender) open(j Job) (*os.File, error) {
	at, name := unix.AT_FDCWD, j.HostPath
	how := &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOFOLLOW | unix.O_CLOEXEC}
	if j.Volume != "" {
		if err := s.enter(j.Volume); err != nil {
			return nil, err
		}
		at = int(s.volume.Fd())
		how.Resolve = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS
	}
	fd, err := unix.Openat2(at, name, how)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: j.name(), Err: err}
	}
	file := os.NewFile(uintptr(fd), j.name())
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is no regular file any more: %w", j.name(), errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	return file, nil
}

// enter opens the folder of a volume, once for jobs that follow each other.
func (s *sender) enter(volume string) error {
	if s.volume != nil && s.volume.Name() == volume {
		return nil
	}
	s.close()
	s.volume = nil
	dir, err := os.OpenFile(volume, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	s.volume = dir
	return nil
}
