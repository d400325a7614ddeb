package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// transfer is the body of one answer: a blob from some byte on.
type transfer struct {
	io.ReadCloser
	// whole is true for an answer without ranges; what lies before the wanted byte has been read and thrown away.
	whole bool
	// ranges is true where the registry says, or has shown, that it answers requests for parts.
	ranges bool
}

// open starts a transfer of the bytes from up to, but without, to. size is that of the whole blob. A registry that knows no
// ranges sends the blob from its beginning; then its first bytes are thrown away, and more than asked for comes.
func (c *Client) open(ctx context.Context, ep endpoint, dgst digest.Digest, from, to, size int64) (*transfer, error) {
	header := http.Header{"Accept": {"application/octet-stream, */*"}}
	if from > 0 || to < size {
		header.Set("Range", fmt.Sprintf("bytes=%d-%d", from, to-1))
	}
	resp, err := c.ask(ctx, ep, http.MethodGet, blobs, dgst.String(), header)
	if err != nil {
		return nil, err
	}
	t := &transfer{ReadCloser: resp.Body, whole: resp.StatusCode == http.StatusOK}
	t.ranges = !t.whole || resp.Header.Get("Accept-Ranges") == "bytes"
	if err := t.start(resp, ep, from, to, size); err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

// start goes to the first wanted byte.
func (t *transfer) start(resp *http.Response, ep endpoint, from, to, size int64) error {
	if t.whole {
		if from == 0 {
			return nil
		}
		if _, err := io.CopyN(io.Discard, t, from); err != nil {
			if errors.Is(err, io.EOF) {
				err = fmt.Errorf("%w before byte %d", errTruncated, from)
			}
			return err
		}
		return nil
	}
	var first, last, total int64
	text := resp.Header.Get("Content-Range")
	if n, _ := fmt.Sscanf(text, "bytes %d-%d/%d", &first, &last, &total); n < 2 || first != from || last >= size || last < from || last >= to {
		return fmt.Errorf("registry %s was asked for bytes %d-%d and answered with range %.64q: %w", ep.host, from, to-1, text, errdefs.ErrFailedPrecondition)
	} else if n == 3 && total != size {
		return fmt.Errorf("registry %s holds %d bytes under this digest, the image's manifest says %d: %w", ep.host, total, size, errdefs.ErrFailedPrecondition)
	}
	return nil
}
