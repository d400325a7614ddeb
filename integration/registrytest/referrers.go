package registrytest

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// referrers is the part of the API's path for lists of referrers.
const referrers = "/referrers/"

// ListReferrers makes the registry serve the referrers API, pageSize entries at a time, or all at once for 0. Without it
// the registry answers 404, as those do that do not know the API.
func (r *Registry) ListReferrers(pageSize int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lists, r.pageSize = true, pageSize
}

// referrers answers with those manifests of a repository that name a subject.
func (r *Registry) referrers(w http.ResponseWriter, req *http.Request, repo, object string) {
	r.mu.Lock()
	lists, size := r.lists, r.pageSize
	r.mu.Unlock()
	if f := r.fault(Referrers, object, req.Method); f != nil {
		r.misbehave(w, req, f, ocispec.MediaTypeImageIndex, encode(r.referring(repo, digest.Digest(object))))
		return
	}
	if !lists || req.Method != http.MethodGet {
		refuse(w, http.StatusNotFound, "UNSUPPORTED", "no such path")
		return
	}
	index := r.referring(repo, digest.Digest(object))
	if last := req.URL.Query().Get("last"); last != "" {
		i := slices.IndexFunc(index.Manifests, func(d ocispec.Descriptor) bool { return d.Digest.String() == last })
		index.Manifests = index.Manifests[i+1:]
	}
	if size > 0 && len(index.Manifests) > size {
		index.Manifests = index.Manifests[:size]
		w.Header().Set("Link", "<"+req.URL.Path+"?last="+index.Manifests[size-1].Digest.String()+`>; rel="next"`)
	}
	r.answer(w, req, nil, ocispec.MediaTypeImageIndex, encode(index))
}

func (r *Registry) referring(repo string, subject digest.Digest) ocispec.Index {
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{}}
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, o := range r.manifests {
		if !strings.HasPrefix(name, repo+":sha256:") {
			continue
		}
		var m ocispec.Manifest
		if json.Unmarshal(o.raw, &m) != nil || m.Subject == nil || m.Subject.Digest != subject {
			continue
		}
		index.Manifests = append(index.Manifests, ocispec.Descriptor{
			MediaType: o.mediaType, Digest: digest.FromBytes(o.raw), Size: int64(len(o.raw)), ArtifactType: m.ArtifactType, Annotations: m.Annotations,
		})
	}
	slices.SortFunc(index.Manifests, func(a, b ocispec.Descriptor) int { return strings.Compare(string(a.Digest), string(b.Digest)) })
	return index
}
