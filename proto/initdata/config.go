package initdata

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"path"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

// DefaultWorkDir and DefaultParallelLayers hold where cdh.toml does not say otherwise.
const (
	DefaultWorkDir        = "/run/kata-containers/image/"
	DefaultParallelLayers = 3
	maxParallelLayers     = 64

	minPullProgress, maxPullProgress = time.Second, time.Hour
)

// AAConfig is aa.toml: whom the guest attests to.
type AAConfig struct {
	TokenConfigs struct {
		KBS *BrokerConfig `toml:"coco_kbs"`
		AS  *struct {
			URL string `toml:"url"`
		} `toml:"coco_as"`
	} `toml:"token_configs"`
	Eventlog *struct {
		InitPCR int  `toml:"init_pcr"`
		Enable  bool `toml:"enable_eventlog"`
	} `toml:"eventlog_config"`
	Log *LogConfig `toml:"log"`
}

// BrokerConfig names a key broker in aa.toml.
type BrokerConfig struct {
	URL string `toml:"url"`
	// Cert is the only CA to trust for URL, in PEM; empty means the system's.
	Cert string `toml:"cert"`
	// TEEKeyAlgorithm is accepted for compatibility and not used: our key is always P-256.
	TEEKeyAlgorithm string `toml:"tee_key_algorithm"`
}

// LogConfig is accepted for compatibility and not used.
type LogConfig struct {
	Level string `toml:"level"`
}

// CDHConfig is cdh.toml: the key broker client and the image puller.
type CDHConfig struct {
	// Socket and AA are accepted for compatibility and not used.
	Socket string `toml:"socket"`
	AA     *struct {
		Socket string `toml:"aa_socket"`
	} `toml:"aa"`
	KBC         KBCConfig     `toml:"kbc"`
	Credentials []Credential  `toml:"credentials"`
	Log         *LogConfig    `toml:"log"`
	Image       ImageSettings `toml:"image"`
}

// KBCCloud and KBCOffline are the values of KBCConfig.Name.
const (
	KBCCloud   = "cc_kbc"
	KBCOffline = "offline_fs_kbc"
)

// KBCConfig names the key broker.
type KBCConfig struct {
	Name string `toml:"name"`
	// URL is the broker's base URL, http or https.
	URL string `toml:"url"`
	// Cert is the only CA to trust for URL, in PEM; empty means the system's.
	Cert string `toml:"kbs_cert"`
}

// Credential is a resource that would be written to a file in the guest. Not implemented, see CDHConfig.Unsupported.
type Credential struct {
	Path        string `toml:"path"`
	ResourceURI string `toml:"resource_uri"`
}

// ImageSettings are the puller's.
type ImageSettings struct {
	WorkDir        string `toml:"work_dir"`
	ParallelLayers int    `toml:"max_concurrent_layer_downloads_per_image"`
	// ExtraRoots are CA certificates in PEM, trusted for registries besides the system's.
	ExtraRoots []string        `toml:"extra_root_certificates"`
	Registries *RegistryConfig `toml:"registry_config"`

	// SecurityPolicy is a containers-policy.json, SecurityPolicyURI one that the key broker has. At most one is set.
	SecurityPolicyURI string `toml:"image_security_policy_uri"`
	SecurityPolicy    string `toml:"image_security_policy"`
	// SigstoreConfig is a containers-registries.d(5) file that says where the OpenPGP signatures of images are,
	// SigstoreConfigURI one that the key broker has. At most one is set.
	SigstoreConfigURI string       `toml:"sigstore_config_uri"`
	SigstoreConfig    string       `toml:"sigstore_config"`
	CredentialsURI    string       `toml:"authenticated_registry_credentials_uri"`
	RegistryConfigURI string       `toml:"registry_configuration_uri"`
	Proxy             *ProxyConfig `toml:"image_pull_proxy"`
	// PullProgress is how long a registry may send nothing, as containerd's setting of this name; 0 leaves it to the puller.
	// Other pullers in guests ignore it.
	PullProgress       Duration `toml:"image_pull_progress_timeout"`
	UnusedKBC          string   `toml:"kbc"`
	UnusedKeyBrokerURI string   `toml:"kbs_uri"`
}

// Duration is written as Go writes durations, for example "90s".
type Duration time.Duration

// UnmarshalText reads a duration.
func (d *Duration) UnmarshalText(text []byte) error {
	parsed, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("%q is not a duration such as \"90s\"", clip(string(text)))
	}
	*d = Duration(parsed)
	return nil
}

// ProxyConfig is the puller's HTTP proxy, with the meaning of the environment variables of these names.
type ProxyConfig struct {
	HTTPS   string `toml:"https_proxy"`
	HTTP    string `toml:"http_proxy"`
	NoProxy string `toml:"no_proxy"`
}

// RegistryConfig is the part of containers-registries.conf version 2 that pullers in guests know.
type RegistryConfig struct {
	UnqualifiedSearch []string   `toml:"unqualified-search-registries"`
	Registries        []Registry `toml:"registry"`
}

// Registry says where images below Prefix are really fetched from.
type Registry struct {
	// Prefix is a host[:port] with an optional path; empty means Location.
	Prefix   string   `toml:"prefix"`
	Location string   `toml:"location"`
	Insecure bool     `toml:"insecure"`
	Blocked  bool     `toml:"blocked"`
	Mirrors  []Mirror `toml:"mirror"`
}

// Mirror is tried before the registry itself.
type Mirror struct {
	Location string `toml:"location"`
	Insecure bool   `toml:"insecure"`
}

// ParseAA reads aa.toml strictly. Faults are InvalidArgument, all of them at once.
func ParseAA(text string) (*AAConfig, error) {
	var c AAConfig
	if err := decodeTOML([]byte(text), &c); err != nil {
		return nil, fmt.Errorf("%s: %w", KeyAA, err)
	}
	if b := c.TokenConfigs.KBS; b != nil {
		if err := errors.Join(checkBrokerURL("token_configs.coco_kbs.url", b.URL), checkCA("token_configs.coco_kbs.cert", b.Cert)); err != nil {
			return nil, fmt.Errorf("%s: %w: %w", KeyAA, errdefs.ErrInvalidArgument, err)
		}
	}
	return &c, nil
}

// ParseCDH reads cdh.toml strictly and fills in defaults. Faults are InvalidArgument, all of them at once. A key that we know but do not
// act on, and whose absence would be less safe than the author meant, is NotImplemented: see Unsupported.
func ParseCDH(text string) (*CDHConfig, error) {
	c := &CDHConfig{Image: ImageSettings{WorkDir: DefaultWorkDir, ParallelLayers: DefaultParallelLayers}}
	if err := decodeTOML([]byte(text), c); err != nil {
		return nil, fmt.Errorf("%s: %w", KeyCDH, err)
	}
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if keys := c.Unsupported(); len(keys) > 0 {
		return nil, fmt.Errorf("%s: %s: %w", KeyCDH, strings.Join(keys, ", "), errdefs.ErrNotImplemented)
	}
	return c, nil
}

// Unsupported lists the keys that are set and that this version cannot honour. Running without them would do less than
// the author relies on, so a document with any of them is refused.
func (c *CDHConfig) Unsupported() []string {
	var keys []string
	if len(c.Credentials) > 0 {
		keys = append(keys, "credentials")
	}
	return keys
}

// Validate returns all faults at once, as InvalidArgument.
func (c *CDHConfig) Validate() error {
	if err := c.faults(); err != nil {
		return fmt.Errorf("%s: %w: %w", KeyCDH, errdefs.ErrInvalidArgument, err)
	}
	return nil
}

func (c *CDHConfig) faults() error {
	var faults []error
	switch c.KBC.Name {
	case KBCCloud:
		faults = append(faults, checkBrokerURL("kbc.url", c.KBC.URL), checkCA("kbc.kbs_cert", c.KBC.Cert))
	case "", KBCOffline:
		if c.KBC.URL != "" {
			faults = append(faults, fmt.Errorf("kbc.url is set, but kbc.name is %q and not %q", c.KBC.Name, KBCCloud))
		}
	default:
		faults = append(faults, fmt.Errorf("kbc.name %q is neither %q nor %q", clip(c.KBC.Name), KBCCloud, KBCOffline))
	}
	if strings.HasPrefix(c.KBC.URL, "http:") && c.KBC.Cert != "" {
		faults = append(faults, errors.New("kbc.kbs_cert is set, but kbc.url is plain http, which no certificate protects: write https"))
	}
	if !path.IsAbs(c.Image.WorkDir) || strings.Contains(c.Image.WorkDir, "..") {
		faults = append(faults, fmt.Errorf("image.work_dir %q is not an absolute path without '..'", clip(c.Image.WorkDir)))
	}
	if n := c.Image.ParallelLayers; n < 1 || n > maxParallelLayers {
		faults = append(faults, fmt.Errorf("image.max_concurrent_layer_downloads_per_image %d is not within 1 and %d", n, maxParallelLayers))
	}
	if d := time.Duration(c.Image.PullProgress); d != 0 && (d < minPullProgress || d > maxPullProgress) {
		faults = append(faults, fmt.Errorf("image.image_pull_progress_timeout %s is not within %s and %s", d, minPullProgress, maxPullProgress))
	}
	for i, cert := range c.Image.ExtraRoots {
		if cert == "" {
			faults = append(faults, fmt.Errorf("image.extra_root_certificates[%d] is empty", i))
		}
		faults = append(faults, checkCA(fmt.Sprintf("image.extra_root_certificates[%d]", i), cert))
	}
	if c.Image.Registries != nil {
		faults = append(faults, c.Image.Registries.validate())
	}
	faults = append(faults, c.Image.sources())
	return errors.Join(faults...)
}

func checkBrokerURL(key, value string) error {
	u, err := url.Parse(value)
	switch {
	case value == "":
		return fmt.Errorf("%s is missing", key)
	case err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "":
		return fmt.Errorf("%s is not an http or https URL", key) // not quoted: it may carry a password
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return fmt.Errorf("%s must not carry credentials, a query or a fragment", key)
	}
	return nil
}

// checkCA accepts empty text or one or more certificates in PEM and nothing else.
func checkCA(key, text string) error {
	rest := []byte(text)
	for n := 0; len(strings.TrimSpace(string(rest))) > 0; n++ {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		if block == nil || block.Type != "CERTIFICATE" {
			return fmt.Errorf("%s is not a PEM certificate", key)
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return fmt.Errorf("%s: certificate %d cannot be parsed", key, n+1)
		}
	}
	return nil
}
