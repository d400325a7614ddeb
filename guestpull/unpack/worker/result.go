package worker

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/coffer-project/coffer/guestpull/mediatype"
	"github.com/coffer-project/coffer/guestpull/unpack"
)

// job is what a worker has to do.
type job struct {
	Compression mediatype.Compression `json:"compression"`
	Digest      digest.Algorithm      `json:"digest"`
	Limits      unpack.Limits         `json:"limits"`
	Devices     bool                  `json:"devices"`
}

// result is unpack.Result on its way. Names and values are bytes, which JSON's strings are not.
type result struct {
	Size       int64         `json:"size"`
	DiffID     digest.Digest `json:"diff_id"`
	Decompress time.Duration `json:"decompress"`
	Apply      time.Duration `json:"apply"`
	Implied    [][]byte      `json:"implied"`
	Links      []link        `json:"links"`
	NoLandlock bool          `json:"no_landlock"`
}

type link struct {
	Name     []byte            `json:"name"`
	Target   []byte            `json:"target"`
	UID      int               `json:"uid"`
	GID      int               `json:"gid"`
	Mode     int64             `json:"mode"`
	Access   time.Time         `json:"access"`
	Modified time.Time         `json:"modified"`
	Xattrs   map[string][]byte `json:"xattrs"` // names quoted as in Go
}

// encode makes the message of a result.
func encode(res *unpack.Result, noLandlock bool) ([]byte, error) {
	out := result{Size: res.Size, DiffID: res.DiffID, Decompress: res.Decompress, Apply: res.Apply, NoLandlock: noLandlock}
	for _, name := range res.Deferred.Implied {
		out.Implied = append(out.Implied, []byte(name))
	}
	for _, l := range res.Deferred.Links {
		to := link{
			Name: []byte(l.Name), Target: []byte(l.Target), UID: l.UID, GID: l.GID, Mode: l.Mode,
			Access: jsonTime(l.Access), Modified: jsonTime(l.Modified), Xattrs: map[string][]byte{},
		}
		for key, value := range l.Xattrs {
			to.Xattrs[strconv.Quote(key)] = []byte(value)
		}
		out.Links = append(out.Links, to)
	}
	raw, err := json.Marshal(out)
	if err == nil && len(raw) > maxResult {
		err = fmt.Errorf("layer leaves more than %d bytes of links and directories to the layers below: %w", maxResult, errdefs.ErrOutOfRange)
	}
	return raw, err
}

// jsonTime is the epoch for years that JSON cannot say, as for those that file systems cannot hold.
func jsonTime(t time.Time) time.Time {
	if y := t.UTC().Year(); y < 1 || y > 9999 {
		return time.Unix(0, 0)
	}
	return t.UTC()
}

// decode rebuilds a result from what a worker says. Whatever the worker is by now, nothing passes that an honest one would
// not say of some layer.
func decode(raw []byte, algorithm digest.Algorithm, limits unpack.Limits) (*unpack.Result, bool, error) {
	var in result
	if err := strict(raw, &in); err != nil {
		return nil, false, err
	}
	if in.Size < 0 || in.Size > limits.Bytes || in.Decompress < 0 || in.Apply < 0 {
		return nil, false, errProtocol
	}
	if asked := algorithm != ""; asked != (in.DiffID != "") || asked && (in.DiffID.Validate() != nil || in.DiffID.Algorithm() != algorithm) {
		return nil, false, errProtocol
	}
	deferred := &unpack.Deferred{}
	for _, name := range in.Implied {
		deferred.Implied = append(deferred.Implied, string(name))
	}
	for _, from := range in.Links {
		to := unpack.Link{
			Name: string(from.Name), Target: string(from.Target), UID: from.UID, GID: from.GID, Mode: from.Mode,
			Access: from.Access, Modified: from.Modified,
		}
		for quoted, value := range from.Xattrs {
			key, err := strconv.Unquote(quoted)
			if err != nil {
				return nil, false, errProtocol
			}
			if to.Xattrs == nil {
				to.Xattrs = map[string]string{}
			}
			to.Xattrs[key] = string(value)
		}
		deferred.Links = append(deferred.Links, to)
	}
	if err := deferred.Check(limits); err != nil {
		return nil, false, fmt.Errorf("%w: %w", errProtocol, err)
	}
	return &unpack.Result{Size: in.Size, DiffID: in.DiffID, Deferred: deferred, Decompress: in.Decompress, Apply: in.Apply}, in.NoLandlock, nil
}

// strict reads one JSON document without unknown fields.
func strict(raw []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return errProtocol
	}
	if _, err := d.Token(); err != io.EOF {
		return errProtocol
	}
	return nil
}

// encodeFailure makes the message of an error.
func encodeFailure(err error) []byte {
	f := failure{Class: "internal", Message: err.Error()}
	for name, class := range classes {
		if errors.Is(err, class) {
			f.Class = name
		}
	}
	f.Message = f.Message[:min(len(f.Message), maxFailure)]
	raw, _ := json.Marshal(f) // strings always can be
	return raw
}

// decodeFailure rebuilds an error. Its text goes to logs and to the host, so that nothing unprintable is left in it.
func decodeFailure(raw []byte) error {
	var f failure
	if err := strict(raw, &f); err != nil {
		return err
	}
	class, known := classes[f.Class]
	if !known || len(f.Message) > 8*maxFailure {
		return errProtocol
	}
	text := strings.Map(func(r rune) rune {
		if !strconv.IsPrint(r) {
			return '?'
		}
		return r
	}, f.Message[:min(len(f.Message), maxFailure)])
	return &unpackError{text: text, class: class}
}

// unpackError has the worker's words, in which the class is already.
type unpackError struct {
	text  string
	class error
}

func (e *unpackError) Error() string { return e.text }
func (e *unpackError) Unwrap() error { return e.class }
