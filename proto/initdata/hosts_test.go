package initdata

import (
	"errors"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestHostsKey(t *testing.T) {
	for registry, key := range map[string]string{
		"docker.io": "hosts.docker.io.toml", "r.example:5000": "hosts.r.example_5000_.toml", DefaultHosts: "hosts._default.toml",
	} {
		if got := HostsKey(registry); got != key {
			t.Errorf("key of %s is %s", registry, got)
		}
		if got, ok := registryOf(key); !ok || got != registry {
			t.Errorf("%s is of %q", key, got)
		}
	}
	for _, key := range []string{KeyCDH, KeyAuth, "hosts.toml", "hosts..toml", "x.hosts.docker.io.toml"} {
		if registry, ok := registryOf(key); ok {
			t.Errorf("%s is taken for the hosts.toml of %q", key, registry)
		}
	}
}

func TestHostsRefuses(t *testing.T) {
	for name, tc := range map[string]struct{ text, want string }{
		"skip_verify":         {"[host.\"https://a\"]\nskip_verify = true", "skip_verify"},
		"skip_verify, server": {"skip_verify = true", "ca"},
		"unknown key":         {"mirrors = 1", "unknown keys"},
		"capability":          {"[host.\"https://a\"]\ncapabilities = [\"fly\"]", "fly"},
		"file of the guest":   {"ca = \"/etc/ssl/ca.pem\"", "neither an entry of [data]"},
		"no certificate":      {"ca = \"text\"", "not a PEM certificate"},
		"ca of numbers":       {"ca = 5", "neither a name nor a list"},
		"client of three":     {"client = [[\"text\", \"text\", \"text\"]]", "pairs"},
		"client of nothing":   {"client = []", "empty"},
		"own header":          {"[header]\nRange = \"bytes=0-\"", "Range"},
		"header of two lines": {"[header]\nx = \"a\\nb\"", "one line"},
		"header too long":     {"[header]\nx = \"" + strings.Repeat("x", 5000) + "\"", "4096"},
		"password in address": {"[host.\"https://a:b@c\"]", "without credentials"},
		"other scheme":        {"[host.\"httpx://c\"]", "https://"},
		"dial_timeout":        {"dial_timeout = \"soon\"", "duration"},
	} {
		t.Run(name, func(t *testing.T) {
			doc := &Document{Data: map[string]string{"hosts.r.example.toml": tc.text, "text": "text"}}
			_, err := doc.Hosts()
			if !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), "hosts.r.example.toml") {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}

func FuzzHosts(f *testing.F) {
	f.Add("server = \"https://docker.io\"\n[host.\"https://m.example/v2/x\"]\ncapabilities = [\"pull\"]\noverride_path = true\nca = [\"a\"]\nclient = [[\"a\", \"kbs:///a/b/c\"]]\n[host.\"https://m.example/v2/x\".header]\nx = [\"1\"]\n")
	f.Fuzz(func(t *testing.T, text string) {
		all, err := (&Document{Data: map[string]string{"hosts.r.example.toml": text, "a": "text"}}).Hosts()
		if err == nil && len(all["r.example"]) == 0 {
			t.Error("no host, not even the registry itself")
		}
	})
}

// FuzzRegistries reads any text as the registries.conf that a key broker hands out.
func FuzzRegistries(f *testing.F) {
	f.Add([]byte("unqualified-search-registries = [\"docker.io\"]\n[[registry]]\nprefix = \"a.test/x\"\nlocation = \"b.test\"\n[[registry.mirror]]\nlocation = \"c.test:5000\"\ninsecure = true\n"))
	f.Add([]byte("[[registry]]\nlocation = \"a.test\"\nblocked = true\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		c, err := ParseRegistries(raw)
		if (err == nil) != (c != nil) || err != nil && !errdefs.IsInvalidArgument(err) && !errdefs.IsNotImplemented(err) {
			t.Errorf("%+v, %v", c, err)
		}
	})
}
