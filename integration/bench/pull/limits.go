package main

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"

	"github.com/klauspost/compress/gzip"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/guestpull/decrypt"
	"github.com/coffer-project/coffer/guestpull/mediatype"
	"github.com/coffer-project/coffer/guestpull/unpack"
	"github.com/coffer-project/coffer/owner/seal"
	"github.com/coffer-project/coffer/proto/kbs"
)

const (
	limitBlock  = 256 << 10
	limitBytes  = 192 << 20
	limitRounds = 5
	limitFiles  = 20000
	// inflateBytes bounds how much of an image's largest layer is inflated to learn its speed.
	inflateBytes = 96 << 20
)

// speeds are what one core of this machine does at most, each stage alone with its data in place.
type speeds struct {
	sha, hmac, ctr float64 // bytes per second
	receive        float64 // bytes per second from the registry, without looking at them
	write          float64 // bytes per second into files of the target
	create         float64 // files per second: made, timed and closed; their owner and mode are right from the start
	inflate        map[string]float64
	library        map[string]float64 // inflate, by a library's decoder
}

// cpuTime is what this thread has spent, in seconds. Other people's load on the machine moves it less than time itself.
func cpuTime() float64 {
	var ru unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_THREAD, &ru); err != nil {
		panic(err) // needs only a valid pointer
	}
	return float64(ru.Utime.Sec+ru.Stime.Sec) + float64(ru.Utime.Usec+ru.Stime.Usec)/1e6
}

// rate returns units per CPU second of the fastest of several rounds: noise only ever slows down.
func rate(units float64, round func() error) (float64, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	best := 0.0
	for range limitRounds {
		start := cpuTime()
		if err := round(); err != nil {
			return 0, err
		}
		if spent := cpuTime() - start; spent > 0 {
			best = max(best, units/spent)
		}
	}
	return best, nil
}

// measureLimits measures everything but inflating.
func measureLimits(ctx context.Context, target string, reg *registry, img *image) (*speeds, error) {
	buf := make([]byte, limitBlock)
	newSource(1).weights(buf)
	block, err := aes.NewCipher(kek[:])
	if err != nil {
		return nil, err
	}
	hash, mac, stream := sha256.New(), hmac.New(sha256.New, kek[:]), cipher.NewCTR(block, buf[:aes.BlockSize])
	each := func(fn func()) func() error {
		return func() error {
			for range limitBytes / limitBlock {
				fn()
			}
			return nil
		}
	}
	s := &speeds{inflate: map[string]float64{}, library: map[string]float64{}}
	for _, stage := range []struct {
		speed *float64
		units float64
		round func() error
	}{
		{&s.sha, limitBytes, each(func() { hash.Write(buf) })},
		{&s.hmac, limitBytes, each(func() { mac.Write(buf) })},
		{&s.ctr, limitBytes, each(func() { stream.XORKeyStream(buf, buf) })},
		{&s.write, limitBytes, func() error { return writeFile(filepath.Join(target, "limit"), buf) }},
		{&s.create, limitFiles, func() error { return createFiles(filepath.Join(target, "limits")) }},
	} {
		if *stage.speed, err = rate(stage.units, stage.round); err != nil {
			return nil, fmt.Errorf("measure limits: %w", err)
		}
	}
	largest := slices.MaxFunc(img.Layers, func(a, b layerSize) int { return int(a.Packed - b.Packed) })
	s.receive, err = rate(float64(largest.Packed), func() error { return receive(ctx, reg, img, buf) })
	return s, err
}

func writeFile(path string, buf []byte) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer os.Remove(path)
	defer f.Close()
	for range limitBytes / limitBlock {
		if _, err := f.Write(buf); err != nil {
			return err
		}
	}
	return nil
}

// createFiles does the least that a file with the right name, owner, mode and time costs.
func createFiles(dir string) error {
	defer os.RemoveAll(dir)
	times := []unix.Timespec{{Sec: 1700000000}, {Sec: 1700000000}}
	for i := 0; i < limitFiles; {
		folder := filepath.Join(dir, fmt.Sprint(i))
		if err := os.MkdirAll(folder, 0o755); err != nil {
			return err
		}
		fd, err := unix.Open(folder, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		for range 100 {
			name := fmt.Sprint(i)
			file, err := unix.Openat(fd, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, 0o644)
			if err == nil {
				err = errors.Join(unix.UtimesNanoAt(file, "", times, unix.AT_EMPTY_PATH), unix.Close(file))
			}
			if err != nil {
				return errors.Join(err, unix.Close(fd))
			}
			i++
		}
		if err := unix.Close(fd); err != nil {
			return err
		}
	}
	return nil
}

// receive reads the image's largest layer from the registry and drops it.
func receive(ctx context.Context, reg *registry, img *image, buf []byte) error {
	desc, err := img.largest(ctx)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://%s/v2/%s/blobs/%s", reg.host, img.Name, desc.Digest), nil)
	if err != nil {
		return err
	}
	// The client reads on this goroutine, whose thread is the one that is measured.
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, resp.Body, buf)
	return err
}

// measureInflate learns how fast the image's own bytes inflate, in bytes of tar per second: with Coffer's decoder, and with
// the fastest one that is a library for Go.
func (s *speeds) measureInflate(ctx context.Context, img *image) error {
	if img.Encoder == notAny {
		return nil
	}
	packed, compression, err := img.decrypted(ctx)
	if err != nil {
		return err
	}
	own := func() (io.ReadCloser, error) {
		return unpack.New(unpack.DefaultLimits()).Decompress(bytes.NewReader(packed), compression)
	}
	if s.inflate[img.Name], err = inflateRate(own); err != nil {
		return err
	}
	s.library[img.Name] = s.inflate[img.Name] // for zstd it is the same
	if compression == mediatype.Gzip {
		s.library[img.Name], err = inflateRate(func() (io.ReadCloser, error) { return gzip.NewReader(bytes.NewReader(packed)) })
	}
	return err
}

func inflateRate(open func() (io.ReadCloser, error)) (float64, error) {
	var out int64
	round := func() error {
		r, err := open()
		if err != nil {
			return err
		}
		defer r.Close()
		buf := make([]byte, limitBlock)
		for out = 0; out < inflateBytes; {
			n, err := r.Read(buf)
			out += int64(n)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
	if err := round(); err != nil {
		return 0, err
	}
	return rate(float64(out), round)
}

// largest describes the largest layer.
func (img *image) largest(ctx context.Context) (ocispec.Descriptor, error) {
	m, err := readManifest(ctx, seal.NewLayout(img.dir, tag))
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return slices.MaxFunc(m.Layers, func(a, b ocispec.Descriptor) int { return int(a.Size - b.Size) }), nil
}

// decrypted returns the packed bytes of the largest layer, as far as measuring needs them.
func (img *image) decrypted(ctx context.Context) ([]byte, mediatype.Compression, error) {
	desc, err := img.largest(ctx)
	if err != nil {
		return nil, 0, err
	}
	kind, err := mediatype.ParseLayer(desc.MediaType)
	if err != nil {
		return nil, 0, err
	}
	layer, _, err := decrypt.New(oneKey{}).Unlock(ctx, desc)
	if err != nil {
		return nil, 0, err
	}
	rc, err := seal.NewLayout(img.dir, tag).Fetch(ctx, desc)
	if err != nil {
		return nil, 0, err
	}
	defer rc.Close()
	// A bit more than is inflated, should it not pack at all: the decoder must not see the cut.
	raw, err := io.ReadAll(io.LimitReader(layer.Reader(rc), inflateBytes+(1<<20)))
	return raw, kind.Compression, err
}

// oneKey is a source of the benchmark's key.
type oneKey struct{}

func (oneKey) Resource(_ context.Context, uri string) ([]byte, error) {
	if _, err := kbs.ParseResourceURI(uri); err != nil {
		return nil, err
	}
	return kek[:], nil
}

// bound is the least that an image can cost on this machine, in seconds: every byte once through every stage that the
// format demands. Wall is reached when all cores are busy and no layer's slowest stage stands alone.
type bound struct {
	CPU  float64 `json:"cpu_s"`
	Wall float64 `json:"wall_s"`
	// Library is CPU with the fastest gzip decoder that is a library for Go, in place of Coffer's own.
	Library float64 `json:"library_cpu_s"`
	// WithReceive is CPU and the time to take the bytes from the registry's socket.
	WithReceive float64 `json:"cpu_with_receive_s"`
	// Stages are the parts of CPU.
	Stages map[string]float64 `json:"stages_s"`
}

func (s *speeds) bound(img *image, cores int) bound {
	b := bound{Stages: map[string]float64{}}
	slowest := 0.0
	for _, l := range img.Layers {
		stages := map[string]float64{
			"sha256 of packed": float64(l.Packed) / s.sha,
			"hmac":             float64(l.Packed) / s.hmac,
			"ctr":              float64(l.Packed) / s.ctr,
			"sha256 of tar":    float64(l.Tar) / s.sha,
			"untar":            float64(l.Files)/s.create + float64(l.Pages)/s.write,
		}
		if speed := s.inflate[img.Name]; speed > 0 {
			stages["inflate"] = float64(l.Tar) / speed
			b.Library += float64(l.Tar)/s.library[img.Name] - stages["inflate"]
		}
		for name, seconds := range stages {
			b.Stages[name] += seconds
			b.CPU += seconds
			slowest = max(slowest, seconds)
		}
		b.WithReceive += float64(l.Packed) / s.receive
	}
	b.WithReceive += b.CPU
	b.Library += b.CPU
	b.Wall = max(b.CPU/float64(cores), slowest)
	return b
}

// table is the speeds in MB (10^6 bytes) per second, and files per second.
func (s *speeds) table() map[string]float64 {
	t := map[string]float64{
		"sha256": s.sha / 1e6, "hmac_sha256": s.hmac / 1e6, "aes_256_ctr": s.ctr / 1e6, "receive": s.receive / 1e6,
		"untar_write": s.write / 1e6, "untar_files_per_s": s.create,
	}
	for name, speed := range s.inflate {
		t["inflate_"+name], t["inflate_library_"+name] = speed/1e6, s.library[name]/1e6
	}
	return t
}
