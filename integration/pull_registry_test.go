package integration

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-project/coffer/integration/harness"
	"github.com/coffer-project/coffer/integration/registrytest"
	"github.com/coffer-project/coffer/owner/broker/brokertest"
)

// registryFault is a way in which a registry fails a guest after the host has pulled the image.
type registryFault struct {
	strike func(s *shop, layer digest.Digest)
	// unmarked leaves the registry out of those that the pod's document allows to reach without TLS.
	unmarked bool
	// want are parts of the error; {host}, {repo}, {layer} and {manifest} stand for what they are in the case. None means
	// that the guest can cope.
	want []string
}

func onLayer(f registrytest.Fault) func(*shop, digest.Digest) {
	return func(s *shop, layer digest.Digest) {
		f.Kind, f.Digest = registrytest.LayerBlob, layer.String()
		s.Inject(f)
	}
}

func onManifest(f registrytest.Fault) func(*shop, digest.Digest) {
	return func(s *shop, _ digest.Digest) {
		f.Kind = registrytest.Manifest
		s.Inject(f)
	}
}

var registryFaults = map[string]registryFault{
	"down": {
		strike: func(s *shop, _ digest.Digest) { s.server.Close() },
		want:   []string{"registry {host} cannot be reached (4 attempts)", "connection refused"},
	},
	"plain-http": {
		strike: func(*shop, digest.Digest) {}, unmarked: true,
		want: []string{"registry {host} speaks http, not https", "mark it insecure in image.registry_config of the initdata's cdh.toml"},
	},
	"silent": {
		strike: onManifest(registrytest.Fault{Action: registrytest.Silent}),
		want:   []string{"fetch manifest {manifest} of", "registry {host} cannot be reached (2 attempts)", "timeout"},
	},
	"login": {
		strike: func(s *shop, _ digest.Digest) { s.RequireLogin("user", "secret") },
		want:   []string{"registry {host} wants credentials for {host}/{repo}", "401"},
	},
	"no-manifest": {
		strike: onManifest(registrytest.Fault{Action: registrytest.Status, Status: http.StatusNotFound}),
		want:   []string{"fetch manifest {manifest}", "registry {host} answered 404"},
	},
	"wrong-manifest": {
		strike: onManifest(registrytest.Fault{Action: registrytest.WrongBlob}),
		want:   []string{"registry {host} sent bytes that do not match digest {manifest}"},
	},
	"endless-manifest": {
		strike: onManifest(registrytest.Fault{Action: registrytest.Endless}),
		want:   []string{"registry {host} sent a manifest larger than", "{manifest}"},
	},
	"no-layer": {
		strike: onLayer(registrytest.Fault{Action: registrytest.Status, Status: http.StatusNotFound}),
		want:   []string{"layer 2 of 3", "{layer}", "registry {host} answered 404"},
	},
	"forbidden-layer": {
		strike: onLayer(registrytest.Fault{Action: registrytest.Status, Status: http.StatusForbidden}),
		want:   []string{"{layer}", "registry {host} answered 403", "credentials do not allow"},
	},
	"broken": {
		strike: onLayer(registrytest.Fault{Action: registrytest.Status, Status: http.StatusInternalServerError}),
		want:   []string{"{layer}", "registry {host} answered 500", "4 attempts"},
	},
	"busy": {
		// A registry that asks for patience gets it.
		strike: onLayer(registrytest.Fault{Action: registrytest.Status, Status: http.StatusTooManyRequests, RetryAfter: time.Second, Times: 2}),
	},
	"stalled": {
		strike: onLayer(registrytest.Fault{Action: registrytest.Stall}),
		want:   []string{"layer 2 of 3", "{layer}", "registry {host}", "sent nothing for 10s"},
	},
	"truncated": {
		strike: onLayer(registrytest.Fault{Action: registrytest.Truncate}),
		want:   []string{"{layer}", "registry {host}", "connection broke", "bytes, and again after 4 attempts to resume"},
	},
	"truncated-once": {
		strike: onLayer(registrytest.Fault{Action: registrytest.Truncate, Times: 1}),
	},
	"short": {
		strike: onLayer(registrytest.Fault{Action: registrytest.Short}),
		want:   []string{"{layer}", "registry {host}", "shorter than the image's manifest says"},
	},
	"wrong-layer": {
		strike: onLayer(registrytest.Fault{Action: registrytest.WrongBlob}),
		want:   []string{"registry {host} sent bytes that do not match digest {layer}"},
	},
	"flipped-byte": {
		strike: onLayer(registrytest.Fault{Action: registrytest.FlipByte}),
		want:   []string{"registry {host} sent bytes that do not match digest {layer}"},
	},
	"endless-layer": {
		// What follows the right bytes is never read.
		strike: onLayer(registrytest.Fault{Action: registrytest.Endless}),
	},
	"redirect": {
		strike: onLayer(registrytest.Fault{Action: registrytest.Redirect}),
		want:   []string{"{layer}", "registry {host} redirects more than"},
	},
	"encoded": {
		strike: onLayer(registrytest.Fault{Action: registrytest.Encoded}),
		want:   []string{"{layer}", "registry {host} answered in encoding"},
	},
}

// registryCase is a registryFault with an image of its own.
type registryCase struct {
	fault     registryFault
	shop      *shop
	reference string
	words     *strings.Replacer
	heals     bool

	refused, fine error
	output        string
	again         string
}

// newRegistryCases makes a case of each fault. They fail at the moment when the guest asks, all at once. A container whose
// registry was healed must run, in the same pod.
func newRegistryCases(t *testing.T, node *harness.Node, broker *brokertest.Broker) map[string]*registryCase {
	t.Helper()
	cases := map[string]*registryCase{}
	for name, fault := range registryFaults {
		cases[name] = newRegistryCase(t, node, broker, name, fault)
	}
	return cases
}

// newRegistryCase makes an image of three layers, of which the guest has the lowest and misses the others: what fails is
// neither the first nor the last that it works on.
func newRegistryCase(t *testing.T, node *harness.Node, broker *brokertest.Broker, name string, fault registryFault) *registryCase {
	t.Helper()
	c := &registryCase{fault: fault, shop: openShop(t, node), heals: name != "down" && !fault.unmarked}
	img := registrytest.NewImage([]registrytest.Layer{
		busyboxLayer(t, node),
		registrytest.NewLayer(registrytest.Gzip, registrytest.Files(map[string]string{"case": name, "noise": noise(32 << 10)})...),
		registrytest.NewLayer(registrytest.Gzip, registrytest.Files(map[string]string{"top": name})...),
	}, nil, nil)
	key := "kbs:///registry/" + name + "/kek"
	c.reference = c.shop.sealed(t, name, key, newKEK(t, broker, key), img, onlyLayer(1, 2))
	desc, err := (&shelf{c.shop.Registry, name}).Resolve(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c.words = strings.NewReplacer("{host}", c.shop.host(), "{repo}", name, "{layer}", c.layer(t, name).Digest.String(), "{manifest}", desc.Digest.String())
	return c
}

func (c *registryCase) layer(t *testing.T, name string) ocispec.Descriptor {
	t.Helper()
	return c.shop.manifest(t, name).Layers[1]
}

// run lets the fault strike and, after it was healed, tries again. It is called beside others, so it judges nothing.
func (c *registryCase) run(t *testing.T, node *harness.Node, pod *harness.Pod, name string) {
	t.Helper()
	c.fault.strike(c.shop, c.layer(t, name).Digest)
	c.output, c.refused, c.fine = try(t.Context(), node, pod, name, c.reference, "/bin/cat", "/case")
	if c.fine != nil || c.refused == nil || !c.heals {
		return
	}
	c.shop.Heal()
	c.shop.RequireLogin("", "")
	var refused error
	if c.again, refused, c.fine = try(t.Context(), node, pod, name+"-again", c.reference, "/bin/cat", "/case"); refused != nil {
		c.fine = fmt.Errorf("after the registry was healed: %w", refused)
	}
}

func (c *registryCase) testOutcome(t *testing.T, name string) {
	if c.fine != nil {
		t.Error(c.fine)
	}
	if len(c.fault.want) == 0 {
		if c.refused != nil || c.output != name {
			t.Errorf("the container printed %q, %v; want %q", c.output, c.refused, name)
		}
		return
	}
	var want []string
	for _, part := range c.fault.want {
		want = append(want, c.words.Replace(part))
	}
	wantRefused(t, c.refused, append(want, c.reference)...)
	if c.heals && c.again != name {
		t.Errorf("after the registry was healed the container printed %q, want %q", c.again, name)
	}
}
