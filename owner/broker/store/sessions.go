package store

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

// sessionFolder is how much time the sessions of one folder end in, so that the ended ones are found without reading any.
const sessionFolder = time.Minute

// Sessions keeps the tokens of attested sessions where all instances that share the Store find them.
type Sessions struct{ Store Store }

// Create keeps the token of a session until expires. A session that has one already is AlreadyExists.
func (s Sessions) Create(ctx context.Context, id string, expires time.Time, token string) error {
	return s.Store.Create(ctx, sessionName(id, expires), []byte(token))
}

// Token returns the token of a session. expires must be that of Create. NotFound where there is none.
func (s Sessions) Token(ctx context.Context, id string, expires time.Time) (string, error) {
	token, err := s.Store.Get(ctx, sessionName(id, expires))
	return string(token), err
}

// Expire removes the sessions that ended before now. Several instances may do so at once.
func (s Sessions) Expire(ctx context.Context, now time.Time) error {
	names, err := s.Store.List(ctx, KindSession)
	if err != nil {
		return fmt.Errorf("list ended sessions: %w", err)
	}
	var errs []error
	for _, name := range names {
		folder, _, _ := strings.Cut(strings.TrimPrefix(name, KindSession+"/"), "/")
		end, err := strconv.ParseInt(folder, 10, 64)
		if err == nil && now.Before(time.Unix(end, 0)) {
			continue
		}
		if err := s.Store.Delete(ctx, name); err != nil && !errdefs.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("remove ended session: %w", err))
		}
	}
	return errors.Join(errs...)
}

// sessionName begins with the end of the folder's time, in seconds since 1970.
func sessionName(id string, expires time.Time) string {
	end := expires.Truncate(sessionFolder).Add(sessionFolder)
	return fmt.Sprintf("%s/%d/%s", KindSession, end.Unix(), id)
}
