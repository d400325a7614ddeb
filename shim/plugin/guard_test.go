package plugin

import (
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestAnswer(t *testing.T) {
	for name, tc := range map[string]struct {
		method string
		err    error
		want   codes.Code
	}{
		"guest cannot do it":         {taskCreate, errdefs.ErrNotImplemented, codes.FailedPrecondition},
		"other error of create":      {taskCreate, errdefs.ErrDataLoss, codes.DataLoss},
		"method that does not exist": {"/containerd.task.v3.Task/Checkpoint", errdefs.ErrNotImplemented, codes.Unimplemented},
		"no class":                   {taskCreate, errors.New("no class"), codes.Unknown},
	} {
		t.Run(name, func(t *testing.T) {
			err := fmt.Errorf("create container c: layer x: %w", tc.err)
			got := status.Convert(answer(tc.method, err))
			if got.Code() != tc.want || got.Message() != err.Error() {
				t.Errorf("got %s %q, want %s %q", got.Code(), got.Message(), tc.want, err)
			}
		})
	}
}

// TestAnswerIsOneLine: a client joins the details of a status to its message, each on a line of its own.
func TestAnswerIsOneLine(t *testing.T) {
	err := fmt.Errorf("start pod p: %w", errors.Join(fmt.Errorf("%w: no kernel: %w", errdefs.ErrUnavailable, io.EOF), errors.New("boom")))
	got := errgrpc.ToNative(answer(taskCreate, err))
	if want := "start pod p: unavailable: no kernel: EOF; boom"; got.Error() != want || !errdefs.IsUnavailable(got) {
		t.Errorf("the client sees %q, want %q", got, want)
	}
}
