package images

import (
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
)

// reconnect is the pause after which a daemon that was away is tried again; gRPC's own grows to two minutes. An attempt at a
// unix socket costs nothing.
const reconnect = 100 * time.Millisecond

// Dial makes a connection to the daemon of this host, containerd or a snapshotter, that listens on a unix socket. It connects
// when first used, so the daemon need not run, and again when the daemon has restarted. The caller closes it.
func Dial(address string) (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient("unix://"+address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{
			BaseDelay: reconnect, Multiplier: 1, MaxDelay: reconnect,
		}}),
	)
	if err != nil {
		return nil, fmt.Errorf("reach %s: %w: %w", address, err, errdefs.ErrInvalidArgument)
	}
	return conn, nil
}
