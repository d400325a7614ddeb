package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"
	"github.com/urfave/cli/v2"

	"github.com/coffer-project/coffer/proto/agentpolicy"
	"github.com/coffer-project/coffer/proto/initdata"
)

func createFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "kbs-url", Usage: "the key broker's base `URL`"},
		&cli.StringFlag{Name: "kbs-cert", Usage: "`FILE` with the only CA in PEM to trust for the key broker"},
		&cli.StringSliceFlag{Name: "extra-ca", Usage: "`FILE` with CAs in PEM to trust for registries; may be repeated"},
		&cli.StringSliceFlag{Name: "insecure-registry", Usage: "registry `HOST[:PORT]` to talk to in plain http; may be repeated"},
		&cli.StringSliceFlag{Name: "mirror", Usage: "`PREFIX=LOCATION` to try first for images below PREFIX; LOCATION with http:// in front is insecure; may be repeated"},
		&cli.StringFlag{Name: "registry-auth", Usage: "key broker's resource `URI` (kbs:///repository/type/tag) that holds a containers-auth.json for registries"},
		&cli.StringFlag{Name: "registry-hosts", Usage: "`FOLDER` like containerd's certs.d, with a folder per registry that holds its hosts.toml"},
		&cli.StringFlag{Name: "image-policy", Usage: "which images may run: a containers-policy.json `FILE`, or the resource (kbs:///repository/type/tag) of a key broker that holds one"},
		&cli.StringFlag{Name: "https-proxy", Usage: "`URL` of the proxy for registries that speak https"},
		&cli.StringFlag{Name: "http-proxy", Usage: "`URL` of the proxy for registries that speak http"},
		&cli.StringFlag{Name: "no-proxy", Usage: "comma-separated `HOSTS` to reach without a proxy"},
		&cli.StringFlag{Name: "aa", Usage: "`FILE` to use as aa.toml as it is"},
		&cli.StringFlag{Name: "cdh", Usage: "`FILE` to use as cdh.toml as it is, in place of the flags above"},
		&cli.StringFlag{Name: "policy", Usage: "`FILE` to use as policy.rego; see cofferctl policy"},
		&cli.StringFlag{Name: "default-policy", Usage: "what holds without --policy: strict (containers run what their images say; the default) or development (the host is believed)"},
		&cli.StringSliceFlag{Name: "tee", Usage: "kind of `TEE` that guests must be: snp or tdx; for development on machines without one, sample or forged-snp. Others refuse every request; may be repeated; default any real one, and no keys without one"},
		&cli.StringSliceFlag{Name: "secret-signer", Usage: "open only sealed secrets that the key in this resource `URI` (kbs:///repository/type/tag) has signed; may be repeated"},
		&cli.BoolFlag{Name: "unsigned-secrets", Usage: "open sealed secrets without a signature, too: for policies that bind the variables' values"},
		&cli.StringSliceFlag{Name: "rest", Usage: "give the pod's programs, on 127.0.0.1:8006, this `THING`: resource, token or evidence; may be repeated"},
		&cli.StringFlag{Name: "algorithm", Value: initdata.SHA384, Usage: "digest: sha256, sha384 or sha512"},
		&cli.StringFlag{Name: "format", Value: formatTOML, Usage: "toml, annotation (the value of " + initdata.Annotation + ") or disk"},
		&cli.StringFlag{Name: "out", Aliases: []string{"o"}, Usage: "`FILE` to write, default standard output"},
	}
}

func createInitdata(c *cli.Context) error {
	if c.Args().Present() {
		return fmt.Errorf("create takes flags only, got %q: %w", c.Args().First(), errdefs.ErrInvalidArgument)
	}
	doc := &initdata.Document{Version: initdata.Version, Algorithm: c.String("algorithm"), Data: map[string]string{}}
	if err := addEntries(c, doc); err != nil {
		return err
	}
	raw, err := encodeDocument(doc, c.String("format"))
	if err != nil {
		return err
	}
	return writeOutput(c, raw)
}

// The forms of a document.
const (
	formatTOML       = "toml"
	formatAnnotation = "annotation"
	formatDisk       = "disk"
)

func encodeDocument(doc *initdata.Document, format string) ([]byte, error) {
	raw, err := doc.Encode()
	if err != nil {
		return nil, err
	}
	switch format {
	case formatTOML:
		return raw, nil
	case formatAnnotation:
		value, err := initdata.EncodeAnnotation(raw)
		return []byte(value + "\n"), err
	case formatDisk:
		return initdata.EncodeDisk(raw)
	default:
		return nil, fmt.Errorf("format %q is none of %s, %s, %s: %w", format, formatTOML, formatAnnotation, formatDisk, errdefs.ErrInvalidArgument)
	}
}

// writeOutput writes to the file of --out, or to standard output.
func writeOutput(c *cli.Context, raw []byte) error {
	if name := c.String("out"); name != "" {
		if err := os.WriteFile(name, raw, 0o644); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
		return nil
	}
	_, err := c.App.Writer.Write(raw)
	return err
}

// addEntries fills in aa.toml, cdh.toml and policy.rego. Each configuration is parsed as the guest will do it.
func addEntries(c *cli.Context, doc *initdata.Document) error {
	for flag, key := range map[string]string{"aa": initdata.KeyAA, "cdh": initdata.KeyCDH, "policy": initdata.KeyPolicy} {
		if c.String(flag) == "" {
			continue
		}
		raw, err := os.ReadFile(c.String(flag))
		if err != nil {
			return fmt.Errorf("read %s: %w", key, err)
		}
		doc.Data[key] = string(raw)
	}
	if err := generateConfigs(c, doc); err != nil {
		return err
	}
	if err := addHosts(c.String("registry-hosts"), doc); err != nil {
		return err
	}
	coffer := &initdata.CofferConfig{}
	coffer.Policy.Default, coffer.Attestation.TEEs = c.String("default-policy"), c.StringSlice("tee")
	coffer.Secrets = initdata.SecretsConfig{Signers: c.StringSlice("secret-signer"), Unsigned: c.Bool("unsigned-secrets")}
	coffer.REST.Serve = c.StringSlice("rest")
	if err := addPolicy(coffer, doc); err != nil {
		return err
	}
	if text, ok := doc.Data[initdata.KeyAA]; ok {
		if _, err := initdata.ParseAA(text); err != nil {
			return err
		}
	}
	if text, ok := doc.Data[initdata.KeyCDH]; ok {
		if _, err := initdata.ParseCDH(text); err != nil {
			return err
		}
	}
	if len(doc.Data) == 0 {
		return fmt.Errorf("nothing to write: give --kbs-url, another configuration flag or a file: %w", errdefs.ErrInvalidArgument)
	}
	return nil
}

// addPolicy adds coffer.toml, and reads it and the policy as the guest will do it.
func addPolicy(coffer *initdata.CofferConfig, doc *initdata.Document) error {
	if text := coffer.Encode(); text != "" {
		doc.Data[initdata.KeyCoffer] = text
	}
	if _, err := doc.PolicyDefault(); err != nil {
		return err
	}
	text, ok := doc.Data[initdata.KeyPolicy]
	if !ok {
		return nil
	}
	if _, err := agentpolicy.Compile(text); err != nil {
		return fmt.Errorf("%s: %w", initdata.KeyPolicy, err)
	}
	return nil
}

// generateConfigs writes the configurations that the flags describe, unless whole files were given.
func generateConfigs(c *cli.Context, doc *initdata.Document) error {
	described := false
	for _, name := range []string{"kbs-cert", "extra-ca", "insecure-registry", "mirror", "registry-auth", "image-policy", "https-proxy", "http-proxy", "no-proxy"} {
		described = described || c.IsSet(name)
	}
	if _, whole := doc.Data[initdata.KeyCDH]; whole {
		if described || c.String("kbs-url") != "" {
			return fmt.Errorf("--cdh cannot be combined with flags that describe its content: %w", errdefs.ErrInvalidArgument)
		}
		return nil
	}
	if c.String("kbs-url") == "" && !described {
		return nil
	}
	settings, err := cdhFromFlags(c)
	if err != nil {
		return err
	}
	if doc.Data[initdata.KeyCDH], err = encodeTOML(settings); err != nil {
		return err
	}
	if _, whole := doc.Data[initdata.KeyAA]; whole || settings.KBC == nil {
		return nil
	}
	aa := map[string]any{"token_configs": map[string]any{"coco_kbs": aaBroker{URL: settings.KBC.URL, Cert: settings.KBC.Cert}}}
	doc.Data[initdata.KeyAA], err = encodeTOML(aa)
	return err
}

// The forms in which the configurations are written: without the keys that are not set, unlike the parsed types.
type (
	aaBroker struct {
		URL  string `toml:"url"`
		Cert string `toml:"cert,multiline,omitempty"`
	}
	cdhFile struct {
		KBC   *cdhBroker `toml:"kbc,omitempty"`
		Image *cdhImage  `toml:"image,omitempty"`
	}
	cdhBroker struct {
		Name string `toml:"name"`
		URL  string `toml:"url"`
		Cert string `toml:"kbs_cert,multiline,omitempty"`
	}
	cdhImage struct {
		ExtraRoots  []string       `toml:"extra_root_certificates,omitempty"`
		Credentials string         `toml:"authenticated_registry_credentials_uri,omitempty"`
		Policy      string         `toml:"image_security_policy,multiline,omitempty"`
		PolicyURI   string         `toml:"image_security_policy_uri,omitempty"`
		Registries  *cdhRegistries `toml:"registry_config,omitempty"`
		Proxy       *cdhProxy      `toml:"image_pull_proxy,omitempty"`
	}
	cdhProxy struct {
		HTTPS   string `toml:"https_proxy,omitempty"`
		HTTP    string `toml:"http_proxy,omitempty"`
		NoProxy string `toml:"no_proxy,omitempty"`
	}
	cdhRegistries struct {
		Registries []cdhRegistry `toml:"registry"`
	}
	cdhRegistry struct {
		Prefix   string      `toml:"prefix,omitempty"`
		Location string      `toml:"location,omitempty"`
		Insecure bool        `toml:"insecure,omitempty"`
		Mirrors  []cdhMirror `toml:"mirror,omitempty"`
	}
	cdhMirror struct {
		Location string `toml:"location"`
		Insecure bool   `toml:"insecure,omitempty"`
	}
)

func cdhFromFlags(c *cli.Context) (*cdhFile, error) {
	var faults []error
	read := func(name string) string {
		raw, err := os.ReadFile(name)
		if err != nil {
			faults = append(faults, fmt.Errorf("read for the initdata: %w", err))
		}
		return string(raw)
	}
	file, image := &cdhFile{}, &cdhImage{}
	if url := c.String("kbs-url"); url != "" {
		file.KBC = &cdhBroker{Name: initdata.KBCCloud, URL: url}
		if name := c.String("kbs-cert"); name != "" {
			file.KBC.Cert = read(name)
		}
	} else if c.String("kbs-cert") != "" {
		faults = append(faults, fmt.Errorf("--kbs-cert needs --kbs-url: %w", errdefs.ErrInvalidArgument))
	}
	for _, name := range c.StringSlice("extra-ca") {
		image.ExtraRoots = append(image.ExtraRoots, read(name))
	}
	registries, err := registriesFromFlags(c)
	image.Registries = registries
	image.Credentials = c.String("registry-auth")
	switch policy := c.String("image-policy"); {
	case strings.HasPrefix(policy, "kbs:"):
		image.PolicyURI = policy
	case policy != "":
		image.Policy = read(policy)
	}
	if proxy := (cdhProxy{HTTPS: c.String("https-proxy"), HTTP: c.String("http-proxy"), NoProxy: c.String("no-proxy")}); proxy != (cdhProxy{}) {
		image.Proxy = &proxy
	}
	if image.ExtraRoots != nil || registries != nil || image.Credentials != "" || image.Policy != "" || image.PolicyURI != "" || image.Proxy != nil {
		file.Image = image
	}
	return file, errors.Join(append(faults, err)...)
}

func registriesFromFlags(c *cli.Context) (*cdhRegistries, error) {
	var list []cdhRegistry
	at := func(prefix string) *cdhRegistry {
		for i := range list {
			if list[i].Prefix == prefix {
				return &list[i]
			}
		}
		list = append(list, cdhRegistry{Prefix: prefix, Location: prefix})
		return &list[len(list)-1]
	}
	for _, host := range c.StringSlice("insecure-registry") {
		at(host).Insecure = true
	}
	for _, pair := range c.StringSlice("mirror") {
		prefix, location, ok := strings.Cut(pair, "=")
		if !ok || prefix == "" {
			return nil, fmt.Errorf("--mirror %q is not PREFIX=LOCATION: %w", pair, errdefs.ErrInvalidArgument)
		}
		location, insecure := strings.CutPrefix(location, "http://")
		location = strings.TrimPrefix(location, "https://")
		registry := at(prefix)
		registry.Mirrors = append(registry.Mirrors, cdhMirror{Location: location, Insecure: insecure})
	}
	if list == nil {
		return nil, nil
	}
	return &cdhRegistries{Registries: list}, nil
}

func encodeTOML(document any) (string, error) {
	var out bytes.Buffer
	if err := toml.NewEncoder(&out).Encode(document); err != nil {
		return "", fmt.Errorf("encode configuration: %w", err)
	}
	return out.String(), nil
}
