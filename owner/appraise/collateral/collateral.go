// Package collateral finds what verifiers need besides the evidence: certificates of processors, revocation lists, TCB tables. They are
// named by the addresses at which the makers of the processors publish them, and kept as files in a directory tree of the same shape:
//
//	DIR/kdsintf.amd.com/vcek/v1/Milan/crl
//	DIR/api.trustedservices.intel.com/tdx/certification/v4/qe/identity          and next to it
//	DIR/api.trustedservices.intel.com/tdx/certification/v4/qe/identity.header   where the answer's headers matter
//
// What is kept is signed by its maker and verified by those who use it, never here. A Store uses files alone unless it is told to ask the
// network; what it then gets it keeps in the same tree, so a copy of the tree serves a broker without a network.
package collateral

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/textproto"
	"net/url"
	"os"
	"path"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/singleflight"
)

// MaxSize bounds one piece in bytes. The largest ones, TCB tables, have some 20 KiB.
const MaxSize = 1 << 20

// DefaultMaxAge is how old a file may get before a Store that may ask the network asks again.
const DefaultMaxAge = 24 * time.Hour

// Hosts are those that publish collateral. A Store asks nobody else, whatever a guest's evidence may say.
var Hosts = []string{
	"kdsintf.amd.com", "api.trustedservices.intel.com", "certificates.trustedservices.intel.com",
	"rim.attestation.nvidia.com", "ocsp.ndis.nvidia.com",
}

// Piece is one piece of collateral.
type Piece struct {
	// Header holds the answer's headers where they were kept. Intel puts issuer chains there.
	Header http.Header
	Body   []byte
}

// Store finds collateral. Calls may be concurrent.
type Store struct {
	// Dir is the tree. Empty means that there are no files.
	Dir string
	// Client asks the network for what is not in Dir or is older than MaxAge; nil means never.
	Client *http.Client
	// MaxAge is DefaultMaxAge where 0.
	MaxAge time.Duration
	// Now is time.Now where nil.
	Now func() time.Time

	flights singleflight.Group
}

// Get returns the piece at address, an https URL of one of Hosts. A piece that is not there and may not be asked for is NotFound; the
// error names the missing file. Where asking fails, an old file is better than none: whether it is too old, its signed dates say.
func (s *Store) Get(ctx context.Context, address string) (*Piece, error) {
	name, err := fileName(address)
	if err != nil {
		return nil, err
	}
	kept, age, err := s.read(name)
	if err == nil && (s.Client == nil || age <= s.maxAge()) {
		return kept, nil
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return nil, err
	}
	if s.Client == nil {
		return nil, fmt.Errorf("collateral %s is missing: put what %s answers into %s: %w", name, address, s.Dir, errdefs.ErrNotFound)
	}
	// Guests that start at once on one machine need the same piece: it is asked for once, and not given up when one of them goes.
	fresh, err, _ := s.flights.Do(name, func() (any, error) {
		piece, err := s.fetch(context.WithoutCancel(ctx), address)
		if err != nil {
			return nil, err
		}
		return piece, s.write(name, piece)
	})
	if err != nil {
		if kept != nil {
			return kept, nil
		}
		return nil, err
	}
	piece, _ := fresh.(*Piece)
	return piece, nil
}

func (s *Store) maxAge() time.Duration {
	if s.MaxAge == 0 {
		return DefaultMaxAge
	}
	return s.MaxAge
}

func (s *Store) now() time.Time {
	if s.Now == nil {
		return time.Now()
	}
	return s.Now()
}

// fileName returns where below Dir the piece at address is. Parts of addresses come from evidence, so only plain ones are let through.
func fileName(address string) (string, error) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "https" || u.User != nil || u.Fragment != "" {
		return "", fmt.Errorf("collateral address is no plain https URL: %w", errdefs.ErrInvalidArgument)
	}
	known := false
	for _, host := range Hosts {
		known = known || u.Host == host
	}
	if !known {
		return "", fmt.Errorf("collateral address names a host that publishes none: %w", errdefs.ErrInvalidArgument)
	}
	name := u.Host + u.EscapedPath()
	if u.RawQuery != "" {
		name += "?" + u.RawQuery
	}
	if strings.ContainsFunc(name, func(r rune) bool {
		return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-/?&=", r)
	}) || !fs.ValidPath(name) || len(path.Base(name)) > 240 {
		return "", fmt.Errorf("collateral address is not plain: %w", errdefs.ErrInvalidArgument)
	}
	return name, nil
}

const headerSuffix = ".header"

func (s *Store) read(name string) (*Piece, time.Duration, error) {
	if s.Dir == "" {
		return nil, 0, fmt.Errorf("no collateral directory: %w", errdefs.ErrNotFound)
	}
	root, err := os.OpenRoot(s.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, fmt.Errorf("no collateral directory: %w", errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("open collateral directory: %w", err)
	}
	defer root.Close()
	info, err := root.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, fmt.Errorf("no such collateral: %w", errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("read collateral: %w", err)
	}
	if info.Size() > MaxSize {
		return nil, 0, fmt.Errorf("collateral %s has more than %d bytes: %w", name, MaxSize, errdefs.ErrInvalidArgument)
	}
	piece := &Piece{}
	if piece.Body, err = root.ReadFile(name); err != nil {
		return nil, 0, fmt.Errorf("read collateral: %w", err)
	}
	header, err := root.ReadFile(name + headerSuffix)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, 0, fmt.Errorf("read collateral: %w", err)
	}
	if piece.Header, err = parseHeader(header); err != nil {
		return nil, 0, fmt.Errorf("%s%s: %w", name, headerSuffix, err)
	}
	return piece, s.now().Sub(info.ModTime()), nil
}

// parseHeader reads "Name: value" lines, with a status line before them or not, as curl --dump-header writes them.
func parseHeader(raw []byte) (http.Header, error) {
	if bytes.HasPrefix(raw, []byte("HTTP/")) {
		_, raw, _ = bytes.Cut(raw, []byte("\n"))
	}
	if len(bytes.TrimSpace(raw)) == 0 {
		return http.Header{}, nil
	}
	closed := append(bytes.TrimRight(bytes.Clone(raw), "\r\n"), "\r\n\r\n"...)
	header, err := textproto.NewReader(bufio.NewReader(bytes.NewReader(closed))).ReadMIMEHeader()
	if err != nil {
		return nil, fmt.Errorf("headers are damaged: %w", errdefs.ErrInvalidArgument)
	}
	return http.Header(header), nil
}
