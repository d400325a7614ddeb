package imagepolicy

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/proto/kbs"
	"github.com/coffer-project/coffer/proto/sigstore"
	"github.com/coffer-project/coffer/proto/simplesigning"
	"github.com/coffer-project/coffer/proto/strictjson"
)

// MaxSize bounds a policy in bytes.
const MaxSize = 256 << 10

// More limits of a policy.
const (
	maxTransports   = 32
	maxScopes       = 4096
	maxRequirements = 16
	maxKeys         = 32
)

// The types of requirements.
const (
	acceptAnything = "insecureAcceptAnything"
	reject         = "reject"
	signedBy       = "signedBy"
	sigstoreSigned = "sigstoreSigned"
)

// dockerTransport is the one transport that guests pull by.
const dockerTransport = "docker"

// Policy is a policy that was read.
type Policy struct {
	fallback []requirement
	docker   map[string][]requirement
}

// requirement is one demand on an image.
type requirement struct {
	kind     string
	keys     []keySource
	identity match
	// unsupported says what cannot be honoured; empty: nothing.
	unsupported string
}

// keySource is where a key is: a resource of the key broker, or the policy, which has key or, for signedBy, ring.
type keySource struct {
	uri  string
	key  *sigstore.PublicKey
	ring *simplesigning.Keyring
}

// Parse reads a policy.json. All of it must be understood; faults are InvalidArgument, or NotImplemented for keys that
// cannot be used.
func Parse(raw []byte) (*Policy, error) {
	p, err := parse(raw)
	if err != nil {
		return nil, fmt.Errorf("image security policy: %w", err)
	}
	return p, nil
}

func parse(raw []byte) (*Policy, error) {
	if len(raw) > MaxSize {
		return nil, fmt.Errorf("it has %d bytes, the limit is %d: %w", len(raw), MaxSize, errdefs.ErrInvalidArgument)
	}
	var fallback, transports json.RawMessage
	err := strictjson.Object(raw, map[string]any{"default": &fallback, "transports": &transports})
	if err != nil {
		return nil, err
	}
	p := &Policy{docker: map[string][]requirement{}}
	if fallback == nil {
		return nil, fmt.Errorf("it has no default; write \"default\": [{\"type\": \"reject\"}]: %w", errdefs.ErrInvalidArgument)
	}
	if p.fallback, err = parseRequirements(fallback); err != nil {
		return nil, fmt.Errorf("default: %w", err)
	}
	if transports == nil {
		return p, nil
	}
	members, err := strictjson.Members(transports, maxTransports)
	if err != nil {
		return nil, fmt.Errorf("transports: %w", err)
	}
	for _, m := range members {
		if err := p.addTransport(m); err != nil {
			return nil, fmt.Errorf("transport %.64q: %w", m.Name, err)
		}
	}
	return p, nil
}

// addTransport reads the scopes of a transport. Those of others than docker hold for no image of a guest; they are read
// to know that the policy is understood.
func (p *Policy) addTransport(transport strictjson.Member) error {
	members, err := strictjson.Members(transport.Value, maxScopes)
	if err != nil {
		return err
	}
	for _, m := range members {
		list, err := parseRequirements(m.Value)
		if err != nil {
			return fmt.Errorf("scope %.200q: %w", m.Name, err)
		}
		if transport.Name != dockerTransport {
			continue
		}
		scope, err := parseScope(m.Name)
		if err != nil {
			return err
		}
		if _, twice := p.docker[scope]; twice {
			return fmt.Errorf("scope %.200q is there twice: %w", scope, errdefs.ErrInvalidArgument)
		}
		p.docker[scope] = list
	}
	return nil
}

func parseRequirements(raw json.RawMessage) ([]requirement, error) {
	var items []json.RawMessage
	if err := json.Unmarshal(raw, &items); err != nil {
		return nil, fmt.Errorf("want a list of requirements: %w", errdefs.ErrInvalidArgument)
	}
	switch {
	case len(items) == 0:
		return nil, fmt.Errorf("the list of requirements is empty; write {\"type\": \"insecureAcceptAnything\"} if that is meant: %w", errdefs.ErrInvalidArgument)
	case len(items) > maxRequirements:
		return nil, fmt.Errorf("%d requirements, the limit is %d: %w", len(items), maxRequirements, errdefs.ErrInvalidArgument)
	}
	var list []requirement
	for i, item := range items {
		r, err := parseRequirement(item)
		if err != nil {
			return nil, fmt.Errorf("requirement %d: %w", i+1, err)
		}
		list = append(list, r)
	}
	return list, nil
}

func parseRequirement(raw json.RawMessage) (requirement, error) {
	var r requirement
	if err := strictjson.Open(raw, map[string]any{"type": &r.kind}); err != nil {
		return r, err
	}
	switch r.kind {
	case acceptAnything, reject:
		return r, strictjson.Object(raw, map[string]any{"type": &r.kind})
	case sigstoreSigned:
		return r, r.parseSigstore(raw)
	case signedBy:
		return r, r.parseOpenPGP(raw)
	default:
		return r, fmt.Errorf("unknown type %.64q: %w", r.kind, errdefs.ErrInvalidArgument)
	}
}

// keyFields are the members that name keys.
type keyFields struct {
	path, data   string
	paths, datas []string
}

func (k *keyFields) into(fields map[string]any) map[string]any {
	fields["keyPath"], fields["keyPaths"], fields["keyData"], fields["keyDatas"] = &k.path, &k.paths, &k.data, &k.datas
	return fields
}

func (r *requirement) parseSigstore(raw json.RawMessage) error {
	var keys keyFields
	var identity json.RawMessage
	fields := keys.into(map[string]any{"type": &r.kind, "signedIdentity": &identity})
	elsewhere := []string{"fulcio", "pki", "rekorPublicKeyPath", "rekorPublicKeyPaths", "rekorPublicKeyData", "rekorPublicKeyDatas"}
	for _, member := range elsewhere {
		fields[member] = new(json.RawMessage)
	}
	if err := strictjson.Object(raw, fields); err != nil {
		return err
	}
	for _, member := range elsewhere {
		if value, ok := fields[member].(*json.RawMessage); ok && *value != nil {
			r.unsupported = "sigstoreSigned with " + member + " is not supported: use a key alone"
		}
	}
	var err error
	if r.identity, err = parseMatch(identity); err != nil {
		return fmt.Errorf("signedIdentity: %w", err)
	}
	if r.unsupported != "" {
		return nil
	}
	r.keys, err = keys.sources(parseKeyData)
	return err
}

// sources reads the keys that are there and checks the names of the others.
func (k *keyFields) sources(parse func(data string) (keySource, error)) ([]keySource, error) {
	given := 0
	for _, is := range []bool{k.path != "", k.paths != nil, k.data != "", k.datas != nil} {
		if is {
			given++
		}
	}
	if given != 1 {
		return nil, fmt.Errorf("want exactly one of keyPath, keyPaths, keyData and keyDatas: %w", errdefs.ErrInvalidArgument)
	}
	paths, datas := k.paths, k.datas
	if k.path != "" {
		paths = []string{k.path}
	}
	if k.data != "" {
		datas = []string{k.data}
	}
	if n := len(paths) + len(datas); n == 0 || n > maxKeys {
		return nil, fmt.Errorf("%d keys, want 1 to %d: %w", n, maxKeys, errdefs.ErrInvalidArgument)
	}
	var list []keySource
	var errs []error
	for _, path := range paths {
		uri, err := kbs.ParseResourceURI(path)
		if err != nil {
			errs = append(errs, fmt.Errorf("keyPath %.200q: want a resource of the key broker (there are no files; keyData takes the key itself): %w", path, err))
		}
		uri.Address = ""
		list = append(list, keySource{uri: uri.String()})
	}
	for i, data := range datas {
		key, err := parse(data)
		if err != nil {
			errs = append(errs, fmt.Errorf("keyData %d: %w", i+1, err))
		}
		list = append(list, key)
	}
	return list, errors.Join(errs...)
}

// parseKeyData reads a key in PEM, in base64 as specified, or as it is, which is what Confidential Containers reads.
func parseKeyData(data string) (keySource, error) {
	text := []byte(data)
	var err error
	if !strings.HasPrefix(strings.TrimSpace(data), "-----BEGIN ") {
		if text, err = decodeKey(data); err != nil {
			return keySource{}, err
		}
	}
	key, err := sigstore.ParsePublicKey(text)
	return keySource{key: key}, err
}

func decodeKey(data string) ([]byte, error) {
	raw, err := base64.StdEncoding.DecodeString(data)
	if err != nil {
		return nil, fmt.Errorf("it is not base64: %w", errdefs.ErrInvalidArgument)
	}
	return raw, nil
}

// find returns the requirements for an image and the scope that they stand under.
func (p *Policy) find(image name) ([]requirement, string) {
	for _, scope := range image.scopes() {
		if list, ok := p.docker[scope]; ok {
			return list, scope
		}
	}
	if list, ok := p.docker[""]; ok {
		return list, dockerTransport
	}
	return p.fallback, "default"
}
