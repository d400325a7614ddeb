package plugin

import (
	"errors"
	"fmt"
	"testing"

	"github.com/containerd/errdefs"
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
