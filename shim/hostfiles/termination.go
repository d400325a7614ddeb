package hostfiles

import (
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// MaxTermination is how much of a container's last message is kept, in bytes: the kubelet reads no more than the end of
// the file of this size.
const MaxTermination = 4096

// WriteTermination puts a container's last message, which comes from the guest, into the file that the kubelet has made
// for it. A message that is too long loses its beginning. Only a plain file of one name that is there already is written,
// never what a link leads to: errdefs.ErrFailedPrecondition otherwise.
func WriteTermination(path, message string) (retErr error) {
	message = message[max(0, len(message)-MaxTermination):]
	file, err := os.OpenFile(path, os.O_WRONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ELOOP) {
		return fmt.Errorf("write termination message: %s is a link: %w", path, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return fmt.Errorf("write termination message: %w", err)
	}
	defer func() { retErr = errors.Join(retErr, file.Close()) }()
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		return fmt.Errorf("write termination message: look at %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Nlink != 1 {
		return fmt.Errorf("write termination message: %s is no plain file of its own: %w", path, errdefs.ErrFailedPrecondition)
	}
	if err := file.Truncate(0); err != nil {
		return fmt.Errorf("write termination message: %w", err)
	}
	if _, err := file.WriteString(message); err != nil {
		return fmt.Errorf("write termination message: %w", err)
	}
	return nil
}
