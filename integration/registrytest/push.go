package registrytest

import (
	"fmt"
	"io"
	"net/http"

	"github.com/opencontainers/go-digest"
)

// upload takes blobs in one piece or in several.
func (r *Registry) upload(w http.ResponseWriter, req *http.Request, repo, id string) {
	switch req.Method {
	case http.MethodPost:
		r.mu.Lock()
		r.serial++
		id = fmt.Sprintf("upload-%d", r.serial)
		r.uploads[id] = nil
		r.mu.Unlock()
		r.uploading(w, repo, id, http.StatusAccepted)
	case http.MethodPatch, http.MethodPut:
		raw, err := io.ReadAll(req.Body)
		if err != nil {
			refuse(w, http.StatusBadRequest, "BLOB_UPLOAD_INVALID", err.Error())
			return
		}
		r.mu.Lock()
		sofar, ok := r.uploads[id]
		sofar = append(sofar, raw...)
		r.uploads[id] = sofar
		r.mu.Unlock()
		switch {
		case !ok:
			refuse(w, http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN", "no such upload")
		case req.Method == http.MethodPatch:
			r.uploading(w, repo, id, http.StatusAccepted)
		default:
			r.commit(w, repo, id, sofar, req.URL.Query().Get("digest"))
		}
	default:
		refuse(w, http.StatusMethodNotAllowed, "UNSUPPORTED", "method not allowed")
	}
}

func (r *Registry) uploading(w http.ResponseWriter, repo, id string, status int) {
	r.mu.Lock()
	size := len(r.uploads[id])
	r.mu.Unlock()
	w.Header().Set("Location", "/v2/"+repo+"/blobs/uploads/"+id)
	w.Header().Set("Docker-Upload-UUID", id)
	w.Header().Set("Range", fmt.Sprintf("0-%d", max(size-1, 0)))
	w.WriteHeader(status)
}

func (r *Registry) commit(w http.ResponseWriter, repo, id string, raw []byte, want string) {
	d, err := digest.Parse(want)
	if err != nil || digest.FromBytes(raw) != d {
		refuse(w, http.StatusBadRequest, "DIGEST_INVALID", "content does not match digest")
		return
	}
	r.mu.Lock()
	delete(r.uploads, id)
	r.blobs[d] = raw
	r.mu.Unlock()
	w.Header().Set("Location", "/v2/"+repo+"/blobs/"+want)
	w.Header().Set("Docker-Content-Digest", want)
	w.WriteHeader(http.StatusCreated)
}
