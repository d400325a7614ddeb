package initdata

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

const testCA = `-----BEGIN CERTIFICATE-----
MIIBcjCCARmgAwIBAgIUOmrMgtDJ9e5MSP7d/hLZ4lXKl/UwCgYIKoZIzj0EAwIw
DzENMAsGA1UEAwwEdGVzdDAeFw0yNjExMjMxMzIwMzFaFw0zNjExMjAxMzIwMzFa
MA8xDTALBgNVBAMMBHRlc3QwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAATlwqv6
RcuN2Ijtt25+mMXZj8CeHGtUggMdljyqH6k2RxVMZC6ftkHfGiKEisw6LLeklekC
1PpQoZhyEwSnPcJjo1MwUTAdBgNVHQ4EFgQU685NJtexqv5oqs8ZHacxw01qeJUw
HwYDVR0jBBgwFoAU685NJtexqv5oqs8ZHacxw01qeJUwDwYDVR0TAQH/BAUwAwEB
/zAKBggqhkjOPQQDAgNHADBEAiBVd6s6dEPNo6YYp5QPeOtsoAQMPnsXIOcEE+YQ
MsxikAIgB/8kY4bh8GQMkkAoUWN8DxsDmrZ10gtq6NNE1dOqHUo=
-----END CERTIFICATE-----
`

func TestParseCDH(t *testing.T) {
	c, err := ParseCDH(`
socket = "unix:///run/confidential-containers/cdh.sock"
[aa]
aa_socket = "unix:///x"
[log]
level = "debug"
[kbc]
name = "cc_kbc"
url = "https://kbs.example:8443/base"
kbs_cert = """` + testCA + `"""
[image]
work_dir = "/run/image"
max_concurrent_layer_downloads_per_image = 5
image_security_policy = '{"default": [{"type": "reject"}]}'
image_pull_progress_timeout = "2m"
extra_root_certificates = ["""` + testCA + `"""]
[image.registry_config]
unqualified-search-registries = ["docker.io"]
[[image.registry_config.registry]]
prefix = "docker.io/library"
location = "mirror.example:5000/hub"
insecure = true
[[image.registry_config.registry.mirror]]
location = "[::1]:5000"
insecure = true
`)
	if err != nil {
		t.Fatal(err)
	}
	if c.KBC.URL != "https://kbs.example:8443/base" || c.KBC.Cert != testCA || c.Image.WorkDir != "/run/image" || c.Image.ParallelLayers != 5 || len(c.Image.ExtraRoots) != 1 ||
		time.Duration(c.Image.PullProgress) != 2*time.Minute {
		t.Errorf("got %+v", c)
	}
	r := c.Image.Registries.Registries[0]
	if r.Prefix != "docker.io/library" || r.Location != "mirror.example:5000/hub" || !r.Insecure || len(r.Mirrors) != 1 || r.Mirrors[0].Location != "[::1]:5000" {
		t.Errorf("got %+v", r)
	}
}

func TestParseCDHDefaults(t *testing.T) {
	c, err := ParseCDH("")
	if err != nil || c.Image.WorkDir != DefaultWorkDir || c.Image.ParallelLayers != DefaultParallelLayers || c.Image.Registries != nil {
		t.Errorf("got %+v, %v", c, err)
	}
}

func TestParseCDHRefuses(t *testing.T) {
	const kbc = "[kbc]\nname = \"cc_kbc\"\nurl = \"https://kbs\"\n"
	for name, tc := range map[string]struct {
		text  string
		want  error
		words []string
	}{
		"unknown key":      {kbc + "urll = \"x\"", errdefs.ErrInvalidArgument, []string{"kbc.urll"}},
		"unknown table":    {"[imge]\nx = 1", errdefs.ErrInvalidArgument, []string{"imge"}},
		"no url":           {"[kbc]\nname = \"cc_kbc\"", errdefs.ErrInvalidArgument, []string{"kbc.url"}},
		"unknown kbc":      {"[kbc]\nname = \"sample\"", errdefs.ErrInvalidArgument, []string{"kbc.name"}},
		"url without name": {"[kbc]\nurl = \"http://x\"", errdefs.ErrInvalidArgument, []string{"kbc.name"}},
		"credentials":      {"[kbc]\nname = \"cc_kbc\"\nurl = \"https://user:hunter2@kbs\"", errdefs.ErrInvalidArgument, []string{"kbc.url"}},
		"ftp":              {"[kbc]\nname = \"cc_kbc\"\nurl = \"ftp://kbs\"", errdefs.ErrInvalidArgument, []string{"kbc.url"}},
		"cert on http":     {"[kbc]\nname = \"cc_kbc\"\nurl = \"http://kbs\"\nkbs_cert = \"\"\"" + testCA + "\"\"\"", errdefs.ErrInvalidArgument, []string{"https"}},
		"broken cert":      {kbc + "kbs_cert = \"x\"", errdefs.ErrInvalidArgument, []string{"kbs_cert"}},
		"work dir":         {"[image]\nwork_dir = \"../x\"", errdefs.ErrInvalidArgument, []string{"work_dir"}},
		"parallel":         {"[image]\nmax_concurrent_layer_downloads_per_image = 0", errdefs.ErrInvalidArgument, []string{"max_concurrent"}},
		"short silence":    {"[image]\nimage_pull_progress_timeout = \"10ms\"", errdefs.ErrInvalidArgument, []string{"image_pull_progress_timeout 10ms"}},
		"endless silence":  {"[image]\nimage_pull_progress_timeout = \"1000h\"", errdefs.ErrInvalidArgument, []string{"image_pull_progress_timeout 1000h"}},
		"no duration":      {"[image]\nimage_pull_progress_timeout = \"soon\"", errdefs.ErrInvalidArgument, []string{"soon", "such as"}},
		"all at once":      {"[kbc]\nname = \"cc_kbc\"\n[image]\nwork_dir = \"x\"", errdefs.ErrInvalidArgument, []string{"kbc.url", "work_dir"}},
		"location": {"[[image.registry_config.registry]]\nlocation = \"http://x\"", errdefs.ErrInvalidArgument, []string{
			"registry[0].location"}},
		"empty registry": {"[[image.registry_config.registry]]\ninsecure = true", errdefs.ErrInvalidArgument, []string{"neither prefix"}},
		"policy in a file": {"[image]\nimage_security_policy_uri = \"file:///policy.json\"", errdefs.ErrInvalidArgument, []string{
			"image.image_security_policy_uri", "kbs:///"}},
		"policy":                 {"[image]\nimage_security_policy = \"{}\"", errdefs.ErrInvalidArgument, []string{"image.image_security_policy", "default"}},
		"two policies":           {"[image]\nimage_security_policy = \"{}\"\nimage_security_policy_uri = \"kbs:///a/b/c\"", errdefs.ErrInvalidArgument, []string{"exclude each other"}},
		"unsupported":            {"[[credentials]]\npath = \"x\"", errdefs.ErrNotImplemented, []string{"credentials"}},
		"signatures":             {"[image]\nsigstore_config = \"default-docker: {lookaside: 'file:///x'}\"", errdefs.ErrInvalidArgument, []string{"image.sigstore_config", "http"}},
		"two places":             {"[image]\nsigstore_config = \"{}\"\nsigstore_config_uri = \"kbs:///a/b/c\"", errdefs.ErrInvalidArgument, []string{"exclude each other"}},
		"place a file":           {"[image]\nsigstore_config_uri = \"file:///x\"", errdefs.ErrInvalidArgument, []string{"sigstore_config_uri", "kbs:///"}},
		"proxy without a scheme": {"[image.image_pull_proxy]\nhttp_proxy = \"proxy:3128\"", errdefs.ErrInvalidArgument, []string{"image_pull_proxy.http_proxy"}},
		"no proxy":               {"[image.image_pull_proxy]\nno_proxy = \"a\"", errdefs.ErrInvalidArgument, []string{"names no proxy"}},
		"file for credentials":   {"[image]\nauthenticated_registry_credentials_uri = \"file:///auth.json\"", errdefs.ErrInvalidArgument, []string{"credentials_uri", "kbs:///"}},
		"registries twice": {"[image]\nregistry_configuration_uri = \"kbs:///a/b/c\"\n[image.registry_config]\n", errdefs.ErrInvalidArgument, []string{
			"exclude each other"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseCDH(tc.text)
			if !errors.Is(err, tc.want) {
				t.Fatalf("got %v", err)
			}
			for _, word := range tc.words {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("%q is not in %v", word, err)
				}
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("error shows a password: %v", err)
			}
		})
	}
}

func TestParseAA(t *testing.T) {
	c, err := ParseAA("[token_configs.coco_kbs]\nurl = \"http://10.0.0.1:8080\"\n[eventlog_config]\ninit_pcr = 17\nenable_eventlog = false\n")
	if err != nil || c.TokenConfigs.KBS == nil || c.TokenConfigs.KBS.URL != "http://10.0.0.1:8080" {
		t.Errorf("got %+v, %v", c, err)
	}
	for name, text := range map[string]string{
		"unknown": "x = 1",
		"url":     "[token_configs.coco_kbs]\nurl = \"kbs\"",
		"cert":    "[token_configs.coco_kbs]\nurl = \"https://kbs\"\ncert = \"x\"",
	} {
		if _, err := ParseAA(text); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func FuzzParseCDH(f *testing.F) {
	f.Add("[kbc]\nname = \"cc_kbc\"\nurl = \"https://kbs\"\n[image.registry_config]\nunqualified-search-registries = [\"x\"]")
	f.Fuzz(func(t *testing.T, text string) {
		if c, err := ParseCDH(text); err == nil && c.Validate() != nil {
			t.Errorf("accepted %q", text)
		}
	})
}

func FuzzParseAA(f *testing.F) {
	f.Add("[token_configs.coco_kbs]\nurl = \"http://10.0.0.1:8080\"")
	f.Fuzz(func(t *testing.T, text string) {
		if c, err := ParseAA(text); (err == nil) != (c != nil) {
			t.Errorf("%q gave %+v and %v", text, c, err)
		}
	})
}
