package collateral

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path"
	"time"

	"github.com/containerd/errdefs"
)

// fetchTimeout bounds one question to the network: a guest is waiting for the answer.
const fetchTimeout = 15 * time.Second

func (s *Store) fetch(ctx context.Context, address string) (*Piece, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, fmt.Errorf("ask for collateral: %w", err)
	}
	response, err := s.Client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("ask for collateral: %w: %w", err, errdefs.ErrUnavailable)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("ask for collateral: %s answered %s: %w", request.URL.Host, response.Status, errdefs.ErrUnavailable)
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, MaxSize+1))
	if err != nil {
		return nil, fmt.Errorf("ask for collateral: %w: %w", err, errdefs.ErrUnavailable)
	}
	if len(body) > MaxSize {
		return nil, fmt.Errorf("ask for collateral: %s answered with more than %d bytes: %w", request.URL.Host, MaxSize, errdefs.ErrUnavailable)
	}
	return &Piece{Header: response.Header, Body: body}, nil
}

// write keeps a piece. The body comes last, so that a file never stands without its headers.
func (s *Store) write(name string, piece *Piece) error {
	if s.Dir == "" {
		return nil
	}
	if err := os.MkdirAll(s.Dir, 0o755); err != nil {
		return fmt.Errorf("make collateral directory: %w", err)
	}
	root, err := os.OpenRoot(s.Dir)
	if err != nil {
		return fmt.Errorf("open collateral directory: %w", err)
	}
	defer root.Close()
	if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return fmt.Errorf("make collateral directory: %w", err)
	}
	var header bytes.Buffer
	if err := piece.Header.Write(&header); err != nil {
		return fmt.Errorf("keep collateral: %w", err)
	}
	if err := replace(root, name+headerSuffix, header.Bytes()); err != nil {
		return err
	}
	return replace(root, name, piece.Body)
}

// replace writes a file as a whole or not at all. Two that write the same file write the same piece, so the last one wins.
func replace(root *os.Root, name string, data []byte) (retErr error) {
	temporary := fmt.Sprintf("%s.%d.new", name, time.Now().UnixNano())
	f, err := root.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return fmt.Errorf("keep collateral: %w", err)
	}
	defer func() {
		if retErr != nil {
			if err := root.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
				retErr = errors.Join(retErr, err)
			}
		}
	}()
	if _, err := f.Write(data); err != nil {
		return fmt.Errorf("keep collateral: %w", errors.Join(err, f.Close()))
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("keep collateral: %w", err)
	}
	if err := root.Rename(temporary, name); err != nil {
		return fmt.Errorf("keep collateral: %w", err)
	}
	return nil
}
