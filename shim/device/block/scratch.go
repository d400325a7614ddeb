package block

import (
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Scratch makes a sparse file of size bytes without a name in dir, which is made if it is missing. The file is gone as soon
// as nobody has it open, whatever ended those who had. It fails with errdefs.ErrFailedPrecondition when the directory cannot
// be used, and with errdefs.ErrResourceExhausted when its file system has less than that free.
func Scratch(dir string, size int64) (_ *os.File, retErr error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("%w: %w", errdefs.ErrFailedPrecondition, err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return nil, fmt.Errorf("look at free space of %s: %w", dir, err)
	}
	// Others may take it later, since the file is sparse: the guest gets write errors then.
	if free := int64(fs.Bavail) * fs.Bsize; free < size {
		return nil, fmt.Errorf("%d MiB are needed in %s and %d are free there: %w", size>>20, dir, free>>20, errdefs.ErrResourceExhausted)
	}
	file, err := unnamed(dir)
	if err != nil {
		return nil, fmt.Errorf("%w: make file in %s: %w", errdefs.ErrFailedPrecondition, dir, err)
	}
	defer func() {
		if retErr != nil {
			file.Close()
		}
	}()
	if err := file.Truncate(size); err != nil {
		return nil, fmt.Errorf("make file of %d MiB in %s: %w", size>>20, dir, err)
	}
	return file, nil
}

// unnamed makes a file that has no name, or loses it at once where the file system can only do that.
func unnamed(dir string) (*os.File, error) {
	file, err := os.OpenFile(dir, unix.O_TMPFILE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EISDIR) {
		return file, err
	}
	if file, err = os.CreateTemp(dir, "scratch-*"); err != nil {
		return nil, err
	}
	if err := os.Remove(file.Name()); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}
