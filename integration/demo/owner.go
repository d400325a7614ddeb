package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/coffer-project/coffer/integration/harness"
	"github.com/coffer-project/coffer/integration/program"
	"github.com/coffer-project/coffer/proto/initdata"
)

// owner is whoever the images belong to: on a machine of his own he would do the same, with cofferctl alone.
type owner struct {
	node      *harness.Node
	dir       string
	documents []string // HOST_DATA of the documents under which keys are released
}

// newOwner makes the owner's signing key, and has the broker trust the guest image.
func newOwner(ctx context.Context, node *harness.Node) (*owner, error) {
	o := &owner{node: node, dir: filepath.Join(node.Dir, "owner")}
	if err := os.MkdirAll(o.dir, 0o700); err != nil {
		return nil, err
	}
	if err := os.WriteFile(o.path("password"), []byte("demo\n"), 0o600); err != nil {
		return nil, err
	}
	program.Say("owner: making a key that signs images")
	if err := node.Ctl(ctx, false, "image", "keygen", "--password-file", o.path("password"), o.path("team")); err != nil {
		return nil, err
	}
	program.Say("owner: measuring the guest image, and telling the key broker (cofferctl measure snp, kbs reference import)")
	return o, node.TrustGuest(ctx)
}

func (o *owner) path(name string) string { return filepath.Join(o.dir, name) }

func (o *owner) ctl(ctx context.Context, args ...string) error { return o.node.Ctl(ctx, true, args...) }

// reach are the flags by which cofferctl reaches a registry of the node's.
func (o *owner) reach(registry *harness.Registry) []string {
	if registry.Plain {
		return []string{"--plain-http"}
	}
	return []string{"--ca", o.node.CA.Path}
}

// encrypt pushes an image encrypted by a new key at the broker.
func (o *owner) encrypt(ctx context.Context, registry *harness.Registry, layout, reference, key string) error {
	args := []string{
		"image", "encrypt", "oci:" + layout, reference, "--key-id", key,
		"--kbs-url", o.node.Broker.URL, "--kbs-ca", o.node.CA.Path, "--admin-key", o.node.Broker.AdminKey,
	}
	if registry.Plain {
		args = append(args, "--plain-http") // the authority of https is the broker's too
	} else {
		args = append(args, "--ca", o.node.CA.Path)
	}
	return o.ctl(ctx, args...)
}

// sign signs an image in its registry.
func (o *owner) sign(ctx context.Context, registry *harness.Registry, reference string) error {
	args := append([]string{"image", "sign", "--key", o.path("team.key"), "--password-file", o.path("password")}, o.reach(registry)...)
	return o.ctl(ctx, append(args, reference)...)
}

// container is one of a pod's manifest.
type container struct {
	Name    string   `json:"name"`
	Image   string   `json:"image"`
	Command []string `json:"command,omitempty"`
}

// pod is what the owner wants to run, and where.
type pod struct {
	name       string
	registry   *harness.Registry
	containers []container
	tees       []string // kinds of guests; nil leaves it out
}

// document makes a pod's initdata: it names the broker, which images may run, and by its interface policy what the host may ask for. The
// broker is told that guests with this document may have keys. It returns the pod's annotations.
func (o *owner) document(ctx context.Context, p pod) (map[string]string, error) {
	file := func(suffix string) string { return o.path(p.name + suffix) }
	if err := o.writeImagePolicy(file("-images.json"), p.registry); err != nil {
		return nil, err
	}
	manifest, err := json.Marshal(map[string]any{ // JSON is YAML
		"apiVersion": "v1", "kind": "Pod", "metadata": map[string]string{"name": p.name}, "spec": map[string]any{"containers": p.containers},
	})
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(file(".yaml"), manifest, 0o600); err != nil {
		return nil, err
	}
	args := []string{
		"initdata", "create", "--kbs-url", o.node.Broker.URL, "--kbs-cert", o.node.CA.Path, "--extra-ca", o.node.CA.Path,
		"--image-policy", file("-images.json"), "--out", file("-base.toml"),
	}
	for _, tee := range p.tees {
		args = append(args, "--tee", tee)
	}
	if p.registry.Plain {
		args = append(args, "--insecure-registry", p.registry.Host)
	}
	if err := o.ctl(ctx, args...); err != nil {
		return nil, err
	}
	args = append([]string{"policy", "generate", "--initdata", file("-base.toml"), "--out", file(".toml")}, o.reach(p.registry)...)
	if err := o.ctl(ctx, append(args, file(".yaml"))...); err != nil {
		return nil, err
	}
	raw, err := os.ReadFile(file(".toml"))
	if err != nil {
		return nil, err
	}
	if err := o.releaseTo(ctx, raw); err != nil {
		return nil, err
	}
	value, err := initdata.EncodeAnnotation(raw)
	return map[string]string{initdata.Annotation: value}, err
}

// writeImagePolicy writes that the demo's images must be signed by the owner, and that no others may run.
func (o *owner) writeImagePolicy(file string, registry *harness.Registry) error {
	public, err := os.ReadFile(o.path("team.pub"))
	if err != nil {
		return err
	}
	type rule map[string]any
	policy, err := json.Marshal(map[string]any{
		"default": []rule{{"type": "reject"}},
		"transports": map[string]any{"docker": map[string]any{
			registry.Host + "/" + repository: []rule{{"type": "sigstoreSigned", "keyData": public}},
		}},
	})
	if err != nil {
		return err
	}
	return os.WriteFile(file, policy, 0o600)
}

// resourcePolicy is the broker's rule: the guest is the one that was measured, and was launched with a document of the owner's.
const resourcePolicy = `package policy

import rego.v1

default allow := false

documents := {%s}

allow if {
	data.plugin == "resource"
	count(input.submods) > 0
	count(doubts) == 0
}

doubts contains sprintf("%%s was appraised as %%q, not as affirming", [part, appraisal["ear.status"]]) if {
	some part, appraisal in input.submods
	appraisal["ear.status"] != "affirming"
}

doubts contains sprintf("%%s of %%s is %%d in the trust vector", [claim, part, code]) if {
	some part, appraisal in input.submods
	some claim, code in appraisal["ear.trustworthiness-vector"]
	code >= 32
}

doubts contains "the guest was launched with initdata that its owner has not released keys to" if {
	not input.submods.cpu0["ear.veraison.annotated-evidence"].init_data in documents
}

reason := concat("; ", doubts) if count(doubts) > 0

reason := "all parts were appraised as affirming, and the initdata is the owner's" if allow
`

// releaseTo has the broker release keys to guests with this document, too.
func (o *owner) releaseTo(ctx context.Context, document []byte) error {
	_, sum, err := initdata.Digest(document)
	if err != nil {
		return err
	}
	hostData := hex.EncodeToString(initdata.Fit(sum, initdata.SNPHostData))
	if !slices.Contains(o.documents, hostData) {
		o.documents = append(o.documents, hostData)
	}
	text := fmt.Sprintf(resourcePolicy, `"`+strings.Join(o.documents, `", "`)+`"`)
	if err := os.WriteFile(o.path("resource.rego"), []byte(text), 0o600); err != nil {
		return err
	}
	args := append([]string{"kbs", "policy", "set"}, o.node.BrokerFlags()...)
	return o.ctl(ctx, append(args, "resource", o.path("resource.rego"))...)
}
