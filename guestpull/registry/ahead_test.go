package registry

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coffer-project/coffer/integration/registrytest"
)

// slowListener gives each connection a limited rate, as many registries do.
type slowListener struct {
	net.Listener
	rate int // bytes in a second
}

func (l slowListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	// What the kernel would hold for the client is not held back.
	_ = c.(*net.TCPConn).SetWriteBuffer(32 << 10)
	return slowConn{c, l.rate}, nil
}

type slowConn struct {
	net.Conn
	rate int
}

func (c slowConn) Write(p []byte) (int, error) {
	sent := 0
	for piece := range chunks(p, 32<<10) {
		n, err := c.Conn.Write(piece)
		if sent += n; err != nil {
			return sent, err
		}
		time.Sleep(time.Duration(float64(len(piece)) / float64(c.rate) * float64(time.Second)))
	}
	return sent, nil
}

func chunks(p []byte, n int) func(func([]byte) bool) {
	return func(yield func([]byte) bool) {
		for len(p) > 0 {
			k := min(n, len(p))
			if !yield(p[:k]) {
				return
			}
			p = p[k:]
		}
	}
}

// slowRegistry has an image of one layer, and limits each connection to so many bytes in a second.
func slowRegistry(tb testing.TB, size, rate int, handle func(http.ResponseWriter, *http.Request, http.Handler)) (string, *registrytest.Image) {
	tb.Helper()
	r := registrytest.New()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) { handle(w, req, r) }))
	s.Listener = slowListener{s.Listener, rate}
	s.Start()
	tb.Cleanup(s.Close)
	_, img := put(r, size)
	return strings.TrimPrefix(s.URL, "http://"), img
}

func honest(w http.ResponseWriter, r *http.Request, h http.Handler) { h.ServeHTTP(w, r) }

func TestReadAhead(t *testing.T) {
	const size = 12 << 20
	cases := map[string]struct {
		handle  func(w http.ResponseWriter, r *http.Request, honest http.Handler)
		streams int
		many    bool // requests at one time
	}{
		"ranges": {honest, 4, true},
		"off":    {honest, 1, false},
		"server says that it knows no ranges": {func(w http.ResponseWriter, r *http.Request, h http.Handler) {
			r.Header.Del("Range")
			h.ServeHTTP(noRanges{w}, r)
		}, 4, false},
		"server lies about knowing ranges": {func(w http.ResponseWriter, r *http.Request, h http.Handler) {
			r.Header.Del("Range")
			h.ServeHTTP(w, r)
		}, 4, true},
		"server wants one request at a time": {oneAtATime(), 4, true},
		"a part breaks":                      {breakOne(), 4, true},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var mu sync.Mutex
			now, most := 0, 0
			addr, img := slowRegistry(t, size, 24<<20, func(w http.ResponseWriter, r *http.Request, h http.Handler) {
				mu.Lock()
				now++
				most = max(most, now)
				mu.Unlock()
				defer func() {
					mu.Lock()
					now--
					mu.Unlock()
				}()
				tc.handle(w, r, h)
			})
			c, err := New(Config{Registries: []Registry{{Prefix: addr, PlainHTTP: true}}, Streams: tc.streams, Attempts: 2})
			if err != nil {
				t.Fatal(err)
			}
			blob, err := readBlob(t.Context(), c, addr+"/app:1", img)
			if err != nil || !bytes.Equal(blob, img.Layers[0].Blob) {
				t.Fatalf("got %d bytes, %v", len(blob), err)
			}
			if (most > 1) != tc.many {
				t.Errorf("%d requests at a time, want many %t", most, tc.many)
			}
			if n := len(c.buffers.slots); n != 0 {
				t.Errorf("%d buffers were not given back", n)
			}
		})
	}
}

// noRanges is an answer that does not tell of ranges.
type noRanges struct{ http.ResponseWriter }

func (w noRanges) WriteHeader(code int) {
	w.Header().Del("Accept-Ranges")
	w.ResponseWriter.WriteHeader(code)
}

func oneAtATime() func(http.ResponseWriter, *http.Request, http.Handler) {
	busy := make(chan struct{}, 1)
	return func(w http.ResponseWriter, r *http.Request, h http.Handler) {
		if r.Header.Get("Range") == "" {
			h.ServeHTTP(w, r)
			return
		}
		select {
		case busy <- struct{}{}:
			defer func() { <-busy }()
			h.ServeHTTP(w, r)
		default:
			w.Header().Set("Retry-After", "0")
			w.WriteHeader(http.StatusTooManyRequests)
		}
	}
}

func breakOne() func(http.ResponseWriter, *http.Request, http.Handler) {
	var once sync.Once
	return func(w http.ResponseWriter, r *http.Request, h http.Handler) {
		var from, to int
		if n, _ := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &from, &to); n == 2 && from > 5<<20 {
			broken := false
			once.Do(func() { broken = true })
			if broken {
				w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/*", from, to))
				w.Header().Set("Content-Length", fmt.Sprint(to-from+1))
				w.WriteHeader(http.StatusPartialContent)
				_ = http.NewResponseController(w).Flush()
				panic(http.ErrAbortHandler)
			}
		}
		h.ServeHTTP(w, r)
	}
}

// BenchmarkSlowConnections shows what reading ahead is worth at a registry that gives each connection 10 MB/s.
func BenchmarkSlowConnections(b *testing.B) {
	const size = 64 << 20
	for _, streams := range []int{1, 2, 4} {
		b.Run(fmt.Sprint(streams), func(b *testing.B) {
			addr, img := slowRegistry(b, size, 10e6, honest)
			b.SetBytes(size)
			for b.Loop() {
				c, err := New(Config{Registries: []Registry{{Prefix: addr, PlainHTTP: true}}, Streams: streams})
				if err != nil {
					b.Fatal(err)
				}
				rc, err := c.Blob(b.Context(), addr+"/app:1", img.Layers[0].Desc, nil)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := io.Copy(io.Discard, rc); err != nil {
					b.Fatal(err)
				}
				rc.Close()
			}
		})
	}
}
