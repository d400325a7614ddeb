package initdata

import (
	"errors"
	"fmt"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2/unstable"

	"github.com/coffer-project/coffer/proto/kbs"
	"github.com/coffer-project/coffer/proto/lazyregexp"
)

// DefaultHosts is the name, in place of a host's, of the hosts.toml for registries that have none of their own.
const DefaultHosts = "_default"

const (
	maxHosts       = 16 // in one hosts.toml
	maxHeaders     = 32
	maxHeaderValue = 4096
)

// Host is one place of a hosts.toml, in containerd's order: mirrors first, the registry itself last.
type Host struct {
	// Address is host[:port]; empty means the registry's own. PlainHTTP and Path, the API's root, go with it.
	Address   string
	PlainHTTP bool
	Path      string
	// Pull and Resolve are capabilities: to give content, and to say what a tag stands for.
	Pull, Resolve bool
	CA            []Source
	Client        []KeyPair
	Header        map[string][]string
	// DialTimeout is 0 where the file does not say.
	DialTimeout time.Duration
}

// Source is a file that a hosts.toml names: its text, where it is another entry of the document, or a key broker's URI.
type Source struct {
	Name, Text, URI string
}

// KeyPair is a client's certificate and key, which may be in one file.
type KeyPair struct{ Cert, Key Source }

// hostFields are what a hosts.toml may say about a place.
type hostFields struct {
	Capabilities []string       `toml:"capabilities"`
	CA           any            `toml:"ca"`
	Client       any            `toml:"client"`
	SkipVerify   bool           `toml:"skip_verify"`
	Header       map[string]any `toml:"header"`
	OverridePath bool           `toml:"override_path"`
	DialTimeout  string         `toml:"dial_timeout"`
}

type hostsFile struct {
	hostFields
	Server string                `toml:"server"`
	Hosts  map[string]hostFields `toml:"host"`
}

// HostsKey is the entry of a document that holds the hosts.toml of a registry. A colon is written as containerd writes it
// in names of folders: hosts.registry.example_5000_.toml.
func HostsKey(registry string) string {
	if i := strings.LastIndexByte(registry, ':'); i > 0 {
		registry = registry[:i] + "_" + registry[i+1:] + "_"
	}
	return "hosts." + registry + ".toml"
}

// registryOf is the reverse of HostsKey.
func registryOf(key string) (string, bool) {
	rest, isHosts := strings.CutPrefix(key, "hosts.")
	name, isTOML := strings.CutSuffix(rest, ".toml")
	if !isHosts || !isTOML || name == "" {
		return "", false
	}
	if name == DefaultHosts {
		return name, true
	}
	if host, port, ok := strings.Cut(strings.TrimSuffix(name, "_"), "_"); ok && strings.HasSuffix(name, "_") {
		return host + ":" + port, true
	}
	return name, true
}

// Hosts reads the document's hosts.toml files, by registry host[:port] or DefaultHosts. Faults are InvalidArgument.
func (d *Document) Hosts() (map[string][]Host, error) {
	all := map[string][]Host{}
	var faults []error
	for key, text := range d.Data {
		registry, ok := registryOf(key)
		if !ok {
			continue
		}
		if registry != DefaultHosts && !locationPattern.MatchString(registry) {
			faults = append(faults, fmt.Errorf("%s: %q is not host[:port]: %w", key, clip(registry), errdefs.ErrInvalidArgument))
			continue
		}
		list, err := d.hosts(text)
		if err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", key, err))
			continue
		}
		all[registry] = list
	}
	return all, errors.Join(faults...)
}

func (d *Document) hosts(text string) ([]Host, error) {
	var file hostsFile
	if err := decodeTOML([]byte(text), &file); err != nil {
		return nil, err
	}
	if len(file.Hosts) > maxHosts {
		return nil, fmt.Errorf("%d hosts, at most %d are allowed: %w", len(file.Hosts), maxHosts, errdefs.ErrInvalidArgument)
	}
	var (
		list   []Host
		faults []error
	)
	add := func(name string, fields hostFields) {
		h, err := d.host(name, fields)
		if err != nil {
			faults = append(faults, fmt.Errorf("host %q: %w", clip(name), err))
		}
		list = append(list, h)
	}
	for _, name := range inOrder(text) {
		add(name, file.Hosts[name])
	}
	if file.Server == "" {
		file.Capabilities = nil // the registry itself has them all; containerd reads it so
	}
	add(file.Server, file.hostFields)
	if len(faults) > 0 {
		return nil, fmt.Errorf("%w: %w", errdefs.ErrInvalidArgument, errors.Join(faults...))
	}
	return list, nil
}

// inOrder lists the tables [host."..."] as they are written: the order is that of the attempts, and a decoded map has none.
func inOrder(text string) []string {
	var names []string
	p := unstable.Parser{}
	p.Reset([]byte(text))
	for p.NextExpression() {
		e := p.Expression()
		if e.Kind != unstable.Table {
			continue
		}
		var parts []string
		for it := e.Key(); it.Next(); {
			parts = append(parts, string(it.Node().Data))
		}
		if len(parts) >= 2 && parts[0] == "host" && !slices.Contains(names, parts[1]) {
			names = append(names, parts[1])
		}
	}
	return names
}

func (d *Document) host(name string, f hostFields) (h Host, err error) {
	faults := []error{h.locate(name, f.OverridePath), h.capabilities(f.Capabilities)}
	if f.SkipVerify {
		faults = append(faults, errors.New("skip_verify would let anybody on the way answer: name the authority of the host's certificate with ca"))
	}
	for _, file := range flatten(f.CA) {
		src, err := d.source("ca", file)
		if err == nil && src.URI == "" {
			err = checkCA("ca "+file, src.Text)
		}
		h.CA, faults = append(h.CA, src), append(faults, err)
	}
	if f.CA != nil && len(h.CA) == 0 {
		faults = append(faults, errors.New("ca is neither a name nor a list of names"))
	}
	h.Client, err = d.pairs(f.Client)
	faults = append(faults, err)
	h.Header, err = headers(f.Header)
	faults = append(faults, err)
	if f.DialTimeout != "" {
		h.DialTimeout, err = time.ParseDuration(f.DialTimeout)
		if err != nil || h.DialTimeout <= 0 {
			faults = append(faults, fmt.Errorf("dial_timeout %q is not a duration such as \"5s\"", clip(f.DialTimeout)))
		}
	}
	return h, errors.Join(faults...)
}

// locate reads the address. Like containerd, it takes https where no scheme is given, and adds /v2 to a path without it.
func (h *Host) locate(name string, override bool) error {
	if name == "" {
		return nil
	}
	if !strings.HasPrefix(name, "http") {
		name = "https://" + name
	}
	u, err := url.Parse(name)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return errors.New("it is not https://host[:port][/path], or http:// likewise, without credentials and query")
	}
	if !locationPattern.MatchString(u.Host) && !ipv6Pattern.MatchString(u.Host) {
		return errors.New("its host is malformed")
	}
	h.Address, h.PlainHTTP, h.Path = u.Host, u.Scheme == "http", u.Path
	if h.Path != "" {
		h.Path = path.Clean(h.Path)
	}
	if !override && !strings.HasSuffix(h.Path, "/v2") {
		h.Path = path.Join("/", h.Path, "v2")
	}
	return nil
}

func (h *Host) capabilities(names []string) error {
	if len(names) == 0 {
		h.Pull, h.Resolve = true, true
		return nil
	}
	for _, name := range names {
		switch strings.ToLower(name) {
		case "pull":
			h.Pull = true
		case "resolve":
			h.Resolve = true
		case "push", "referrers": // a guest does neither
		default:
			return fmt.Errorf("capability %q is none of pull, resolve, push, referrers", clip(name))
		}
	}
	return nil
}

// flatten reads a name or a list of names.
func flatten(value any) []string {
	switch v := value.(type) {
	case string:
		return []string{v}
	case []any:
		var out []string
		for _, item := range v {
			name, ok := item.(string)
			if !ok {
				return nil
			}
			out = append(out, name)
		}
		return out
	}
	return nil
}

// pairs reads client: a name, a list of names, or a list of pairs.
func (d *Document) pairs(value any) ([]KeyPair, error) {
	if value == nil {
		return nil, nil
	}
	var lists [][]string
	if name, ok := value.(string); ok {
		lists = [][]string{{name}}
	}
	items, _ := value.([]any)
	for _, item := range items {
		lists = append(lists, flatten(item))
	}
	var (
		out    []KeyPair
		faults []error
	)
	for _, names := range lists {
		if len(names) < 1 || len(names) > 2 {
			return nil, errors.New("client is neither a name, nor a list of names, nor a list of pairs of a certificate and a key")
		}
		cert, err := d.source("client", names[0])
		faults = append(faults, err)
		key, err := d.source("client", names[len(names)-1])
		faults = append(faults, err)
		out = append(out, KeyPair{Cert: cert, Key: key})
	}
	if len(out) == 0 {
		return nil, errors.New("client is empty")
	}
	return out, errors.Join(faults...)
}

// source finds a file: there is nothing but the document and the key broker to take it from.
func (d *Document) source(field, name string) (Source, error) {
	if strings.HasPrefix(name, "kbs:") {
		uri, err := kbs.ParseResourceURI(name)
		if err != nil {
			return Source{}, fmt.Errorf("%s: %w", field, err)
		}
		return Source{Name: name, URI: uri.String()}, nil
	}
	text, ok := d.Data[name]
	if !ok {
		return Source{}, fmt.Errorf("%s %q is neither an entry of [data] nor a kbs:///repository/type/tag", field, clip(name))
	}
	return Source{Name: name, Text: text}, nil
}

var (
	headerName  = lazyregexp.New(`^[A-Za-z0-9-]{1,64}$`)
	headerValue = lazyregexp.New(`^[\t\x20-\x7e]*$`)
	// ownHeaders are those that the client decides on itself.
	ownHeaders = []string{"host", "range", "accept", "accept-encoding", "content-length", "transfer-encoding", "connection", "te", "trailer", "upgrade"}
)

func headers(fields map[string]any) (map[string][]string, error) {
	if len(fields) > maxHeaders {
		return nil, fmt.Errorf("%d headers, at most %d are allowed", len(fields), maxHeaders)
	}
	var faults []error
	out := make(map[string][]string, len(fields))
	for name, value := range fields {
		values := flatten(value)
		if !headerName.MatchString(name) || slices.Contains(ownHeaders, strings.ToLower(name)) || len(values) == 0 {
			faults = append(faults, fmt.Errorf("header %q cannot be set, or its value is neither text nor a list of texts", clip(name)))
		}
		for _, v := range values {
			if len(v) > maxHeaderValue || !headerValue.MatchString(v) {
				faults = append(faults, fmt.Errorf("header %q: its value is not one line of at most %d ASCII characters", clip(name), maxHeaderValue))
			}
		}
		out[name] = values
	}
	return out, errors.Join(faults...)
}

// ParseRegistries reads a containers-registries.conf that comes from elsewhere, of version 2 and with the keys of
// image.registry_config. Faults are InvalidArgument.
func ParseRegistries(raw []byte) (*RegistryConfig, error) {
	if len(raw) > MaxSize {
		return nil, fmt.Errorf("registry configuration of %d bytes is larger than %d: %w", len(raw), MaxSize, errdefs.ErrInvalidArgument)
	}
	var c RegistryConfig
	if err := decodeTOML(raw, &c); err != nil {
		return nil, fmt.Errorf("registry configuration: %w", err)
	}
	if err := c.validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", errdefs.ErrInvalidArgument, err)
	}
	return &c, nil
}
