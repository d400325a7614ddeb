package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-project/coffer/cmd/internal/bar"
	"github.com/coffer-project/coffer/guestpull/image"
)

// report is what --json prints. Durations are in microseconds, as everywhere in Coffer's reports.
type report struct {
	Reference      string        `json:"reference"`
	TargetDigest   digest.Digest `json:"target_digest"`
	ManifestDigest digest.Digest `json:"manifest_digest"`
	// Micros is the time that passed, Phases that of each stage at work; layers are worked on side by side.
	Micros int64   `json:"micros"`
	Phases []phase `json:"phases"`
	// FetchedBytes are the layers as the registry has them, UnpackedBytes the sizes of their files.
	FetchedBytes  int64               `json:"fetched_bytes"`
	UnpackedBytes int64               `json:"unpacked_bytes"`
	KeyIDs        []string            `json:"key_ids,omitempty"`
	Verdict       *verdict            `json:"verdict,omitempty"`
	Layers        []layer             `json:"layers"`
	Config        ocispec.ImageConfig `json:"config"`
}

// verdict says which scope of the image security policy decided, and by which keys.
type verdict struct {
	Scope    string       `json:"scope"`
	Accepted []acceptance `json:"accepted"`
}

type acceptance struct {
	Rule     string        `json:"rule"`
	KeyID    string        `json:"key_id,omitempty"`
	KeyURI   string        `json:"key_uri,omitempty"`
	Digest   digest.Digest `json:"digest,omitempty"`
	Identity string        `json:"identity,omitempty"`
	Form     string        `json:"form,omitempty"`
}

type phase struct {
	Name   string `json:"name"`
	Micros int64  `json:"micros"`
}

type layer struct {
	Digest          digest.Digest `json:"digest"`
	MediaType       string        `json:"media_type"`
	CompressedBytes int64         `json:"compressed_bytes"`
	UnpackedBytes   int64         `json:"unpacked_bytes"`
	Encrypted       bool          `json:"encrypted"`
	// Dir is for overlay's lowerdir; layers are listed lowest first.
	Dir string `json:"dir"`
}

func newReport(img *image.Image, took time.Duration) *report {
	r := &report{
		Reference: img.Reference, TargetDigest: img.TargetDigest, ManifestDigest: img.ManifestDigest,
		Micros: took.Microseconds(), KeyIDs: img.Report.KeyIDs, Config: img.Config.Config,
	}
	if v := img.Verdict; v.Scope != "" {
		r.Verdict = &verdict{Scope: v.Scope}
		for _, a := range v.Accepted {
			r.Verdict.Accepted = append(r.Verdict.Accepted, acceptance(a))
		}
	}
	for _, p := range img.Report.Phases {
		r.Phases = append(r.Phases, phase{Name: p.Name, Micros: p.Micros})
	}
	for i, l := range img.Report.Layers {
		r.FetchedBytes += l.Packed
		r.UnpackedBytes += l.Unpacked
		r.Layers = append(r.Layers, layer{
			Digest: l.Digest, MediaType: l.MediaType, CompressedBytes: l.Packed, UnpackedBytes: l.Unpacked, Encrypted: l.Encrypted, Dir: img.Layers[i],
		})
	}
	return r
}

// show prints the report for people, the folders last.
func (r *report) show(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	took := time.Duration(r.Micros) * time.Microsecond
	fmt.Fprintf(w, "image:\t%s\nmanifest:\t%s\n", r.Reference, r.ManifestDigest)
	fmt.Fprintf(w, "took:\t%s\nfetched:\t%s, %s/s\nunpacked:\t%s\n", took.Round(time.Millisecond), bar.Bytes(r.FetchedBytes),
		bar.Bytes(int64(float64(r.FetchedBytes)/max(took, time.Microsecond).Seconds())), bar.Bytes(r.UnpackedBytes))
	for _, p := range r.Phases {
		fmt.Fprintf(w, "  %s\t%s\n", p.Name, time.Duration(p.Micros)*time.Microsecond)
	}
	for _, id := range r.KeyIDs {
		fmt.Fprintf(w, "key:\t%s\n", id)
	}
	if r.Verdict != nil {
		for _, a := range r.Verdict.Accepted {
			fmt.Fprintf(w, "policy:\t%s\n", strings.TrimSpace(strings.Join([]string{r.Verdict.Scope, a.Rule, a.KeyID, a.KeyURI}, " ")))
		}
	}
	fmt.Fprintln(w, "\nLAYER\tPACKED\tUNPACKED\tENCRYPTED\tFOLDER")
	for _, l := range r.Layers {
		fmt.Fprintf(w, "%.19s\t%d\t%d\t%t\t%s\n", l.Digest, l.CompressedBytes, l.UnpackedBytes, l.Encrypted, l.Dir)
	}
	return w.Flush()
}
