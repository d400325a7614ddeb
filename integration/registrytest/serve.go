package registrytest

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// The parts of the API's paths between repository and object.
const (
	manifests = "/manifests/"
	uploads   = "/blobs/uploads/"
	blobs     = "/blobs/"
)

// recorder remembers the status of an answer for the log.
type recorder struct {
	http.ResponseWriter
	status int
}

func (w *recorder) WriteHeader(code int) {
	w.status = code
	w.ResponseWriter.WriteHeader(code)
}

func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// ServeHTTP speaks the distribution protocol.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	rec := &recorder{ResponseWriter: w, status: http.StatusOK}
	host, _, _ := net.SplitHostPort(req.RemoteAddr)
	entry := Request{Time: time.Now(), Client: host, Method: req.Method, Kind: Other, Range: req.Header.Get("Range")}
	// Logged before the answer, so that whoever has the answer finds the request in the log; the status comes later, also
	// when a fault ends the handler by a panic, which is how a connection is broken.
	r.classify(req, &entry)
	r.mu.Lock()
	line := len(r.log)
	r.log = append(r.log, entry)
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		r.log[line].Status = rec.status
		r.mu.Unlock()
	}()
	r.route(rec, req, &entry)
}

// classify says what a request asks for.
func (r *Registry) classify(req *http.Request, entry *Request) {
	path, _ := strings.CutPrefix(req.URL.Path, "/v2/")
	for _, part := range []string{manifests, uploads, blobs, referrers} {
		repo, object, ok := cutLast(path, part)
		if !ok {
			continue
		}
		entry.Repo, entry.Object, entry.part = repo, object, part
		switch part {
		case manifests:
			entry.Kind = Manifest
		case blobs:
			entry.Kind = r.kind(object)
		case referrers:
			entry.Kind = Referrers
		}
		return
	}
}

func (r *Registry) route(w http.ResponseWriter, req *http.Request, entry *Request) {
	if !strings.HasPrefix(req.URL.Path, "/v2/") {
		refuse(w, http.StatusNotFound, "UNSUPPORTED", "no such path")
		return
	}
	if !r.allowed(req) {
		w.Header().Set("WWW-Authenticate", `Basic realm="registrytest"`)
		refuse(w, http.StatusUnauthorized, "UNAUTHORIZED", "authentication required")
		return
	}
	switch entry.part {
	case manifests:
		r.manifest(w, req, entry.Repo, entry.Object)
	case uploads:
		r.upload(w, req, entry.Repo, entry.Object)
	case blobs:
		r.blob(w, req, entry.Kind, entry.Object)
	case referrers:
		r.referrers(w, req, entry.Repo, entry.Object)
	default:
		if req.URL.Path != "/v2/" {
			refuse(w, http.StatusNotFound, "UNSUPPORTED", "no such path")
		}
	}
}

func cutLast(s, sep string) (before, after string, ok bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return "", "", false
	}
	return s[:i], s[i+len(sep):], true
}

func (r *Registry) allowed(req *http.Request) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.user == "" {
		return true
	}
	user, password, ok := req.BasicAuth()
	return ok && user == r.user && password == r.password
}

func (r *Registry) kind(object string) Kind {
	r.mu.Lock()
	defer r.mu.Unlock()
	if k, ok := r.kinds[digest.Digest(object)]; ok {
		return k
	}
	return Other
}

func (r *Registry) manifest(w http.ResponseWriter, req *http.Request, repo, name string) {
	switch req.Method {
	case http.MethodGet, http.MethodHead:
		f := r.fault(Manifest, name, req.Method)
		mediaType, raw, ok := r.GetManifest(repo, name)
		if !ok && f == nil {
			refuse(w, http.StatusNotFound, "MANIFEST_UNKNOWN", "manifest unknown")
			return
		}
		w.Header().Set("Docker-Content-Digest", digest.FromBytes(raw).String())
		r.answer(w, req, f, mediaType, raw)
	case http.MethodPut:
		if f := r.fault(Manifest, name, req.Method); f != nil {
			r.misbehave(w, req, f, "", nil)
			return
		}
		raw, err := io.ReadAll(io.LimitReader(req.Body, 8<<20))
		if err != nil {
			refuse(w, http.StatusBadRequest, "MANIFEST_INVALID", err.Error())
			return
		}
		r.PutManifest(repo, name, req.Header.Get("Content-Type"), raw)
		w.Header().Set("Docker-Content-Digest", digest.FromBytes(raw).String())
		w.WriteHeader(http.StatusCreated)
	default:
		refuse(w, http.StatusMethodNotAllowed, "UNSUPPORTED", "method not allowed")
	}
}

func (r *Registry) blob(w http.ResponseWriter, req *http.Request, kind Kind, name string) {
	f := r.fault(kind, name, req.Method)
	raw, ok := r.GetBlob(digest.Digest(name))
	if !ok && f == nil {
		refuse(w, http.StatusNotFound, "BLOB_UNKNOWN", "blob unknown")
		return
	}
	r.answer(w, req, f, "application/octet-stream", raw)
}

// answer sends bytes, honestly when f is nil.
func (r *Registry) answer(w http.ResponseWriter, req *http.Request, f *Fault, mediaType string, raw []byte) {
	if f != nil {
		r.misbehave(w, req, f, mediaType, raw)
		return
	}
	w.Header().Set("Content-Type", mediaType)
	http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(raw))
}

func (r *Registry) misbehave(w http.ResponseWriter, req *http.Request, f *Fault, mediaType string, raw []byte) {
	w.Header().Set("Content-Type", mediaType)
	switch f.Action {
	case Status:
		if f.RetryAfter > 0 {
			w.Header().Set("Retry-After", strconv.Itoa(int(f.RetryAfter.Seconds())))
		}
		refuse(w, f.Status, "INJECTED", "injected fault")
	case WrongBlob:
		r.answer(w, req, nil, mediaType, bytes.Repeat([]byte{0x55}, len(raw)))
	case FlipByte:
		r.answer(w, req, nil, mediaType, flip(raw))
	case Short:
		r.answer(w, req, nil, mediaType, raw[:len(raw)/2])
	case WrongType:
		r.answer(w, req, nil, f.MediaType, raw)
	case NoRange:
		w.Header().Set("Content-Length", strconv.Itoa(len(raw)))
		write(w, raw)
	case Encoded:
		w.Header().Set("Content-Encoding", "gzip")
		write(w, Pack(raw, Gzip))
	case Redirect:
		w.Header().Set("Location", req.URL.Path+"?again="+strconv.FormatInt(time.Now().UnixNano(), 36))
		w.WriteHeader(http.StatusTemporaryRedirect)
	case Silent:
		r.waitForClient(req)
		panic(http.ErrAbortHandler)
	default:
		r.halfway(w, req, f, raw)
	}
}

// halfway has the faults that strike in the middle of a body.
func (r *Registry) halfway(w http.ResponseWriter, req *http.Request, f *Fault, raw []byte) {
	start := 0
	if _, err := fmt.Sscanf(req.Header.Get("Range"), "bytes=%d-", &start); err == nil && start <= len(raw) {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", start, len(raw)-1, len(raw)))
		raw = raw[start:]
		w.Header().Set("Content-Length", strconv.Itoa(len(raw)))
		w.WriteHeader(http.StatusPartialContent)
	} else if f.Action != Endless {
		w.Header().Set("Content-Length", strconv.Itoa(len(raw)))
	}
	if f.Action == Endless {
		write(w, raw)
		zero := make([]byte, 64<<10)
		for req.Context().Err() == nil {
			if _, err := w.Write(zero); err != nil {
				return
			}
		}
		return
	}
	write(w, raw[:len(raw)/2])
	if err := http.NewResponseController(w).Flush(); err != nil {
		panic(http.ErrAbortHandler)
	}
	if f.Action == Stall {
		r.waitForClient(req)
	}
	panic(http.ErrAbortHandler)
}

// write sends what the client still takes; a client that leaves is not this side's fault.
func write(w io.Writer, raw []byte) {
	_, _ = w.Write(raw)
}

func flip(raw []byte) []byte {
	out := slices.Clone(raw)
	if len(out) > 0 {
		out[len(out)/2] ^= 1
	}
	return out
}

func refuse(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"errors":[{"code":%q,"message":%q}]}`, code, message)
}
