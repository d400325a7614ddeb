package integration

import (
	"fmt"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/integration/harness"
	"github.com/coffer-project/coffer/integration/registrytest"
	"github.com/coffer-project/coffer/integration/signtest"
	"github.com/coffer-project/coffer/owner/broker/brokertest"
)

const (
	signedRepo = "signed"
	signKey    = "kbs:///content/keys/team"
)

// signaturePolicy lets all images run but those of one repository, which must be signed.
func signaturePolicy(host string) string {
	return fmt.Sprintf(`{"default":[{"type":"insecureAcceptAnything"}],"transports":{"docker":{"%s/%s":[{"type":"sigstoreSigned","keyPath":%q}]}}}`, host, signedRepo, signKey)
}

// signerPolicy allows every request but containers of the repository whose image the wanted key has not signed. The host says which key a
// container wants by its name: an owner's policy would have the key.
func signerPolicy() string {
	var rules strings.Builder
	rules.WriteString("package agent_policy\n")
	for request := range strings.FieldsSeq(`CloseStdin CopyFile CreateSandbox DestroySandbox ExecProcess GetDiagnosticData GetMetrics GetOOMEvent
		GuestDetails ListInterfaces ListRoutes ReadStream RemoveContainer ReseedRandomDev SignalProcess StartContainer StatsContainer TtyWinResize
		UpdateContainer UpdateInterface UpdateRoutes AddARPNeighbors WaitProcess WriteStream`) {
		fmt.Fprintf(&rules, "%sRequest := true\n", request)
	}
	fmt.Fprintf(&rules, `
CreateContainerRequest if count(reasons) == 0
reasons contains "the image lacks the signature that the container wants" if {
	input.coffer.stage == "container"
	contains(input.coffer.image.reference, "/%s:")
	not wanted in input.coffer.image.signature.signers
}
wanted := "kbs:///content/keys/nobody" if endswith(input.OCI.Annotations["io.kubernetes.cri.container-name"], "nobody")
else := %q
`, signedRepo, signKey)
	return rules.String()
}

// checkSignatures starts an image that must be signed, in a pod with the policy for it: before it is signed, after somebody
// else has signed it, and signed by the right key. A guest that refuses it has fetched none of its layers.
func checkSignatures(t *testing.T, node *harness.Node, pod *harness.Pod, broker *brokertest.Broker, registry *shop, base registrytest.Layer) {
	t.Helper()
	key := signtest.NewKey(t, "ecdsa-p256")
	broker.Put(t, signKey, signtest.Public(t, key))
	if err := registry.Listen("127.0.0.1:0"); err != nil { // the node's address is for its pods
		t.Fatal(err)
	}
	top := registrytest.NewLayer(registrytest.Gzip, registrytest.Files(map[string]string{"who": "signed"})...)
	img := registrytest.NewImage([]registrytest.Layer{base, top}, nil, nil)
	reference := registry.put(signedRepo, registrytest.NewIndex(map[string]*registrytest.Image{"linux/amd64": img}))
	pull(t, pod, reference)
	refuse := func(name string, want ...string) {
		t.Helper()
		_, refused, fault := try(t.Context(), node, pod, name, reference, "/bin/cat", "/who")
		if fault != nil {
			t.Fatal(fault)
		}
		wantRefused(t, refused, append(want, reference, "image security policy", "has no signature that counts", key.Public().ID())...)
		for _, r := range registry.Requests() {
			if r.Object == top.Desc.Digest.String() {
				t.Errorf("%s: the layer was asked for by %s", name, r.Client)
			}
		}
	}
	refuse("unsigned", "it has no signature")
	_, index, ok := registry.GetManifest(signedRepo, "v1")
	if !ok {
		t.Fatal("the index is gone")
	}
	target := registrytest.Descriptor("application/vnd.oci.image.index.v1+json", index)
	options := signtest.Options{Key: signtest.NewKey(t, "ed25519"), Identity: registry.host() + "/" + signedRepo}
	signtest.Sign(t, registry.Registry, signedRepo, target, options)
	refuse("signed-by-another", "it was not made with the policy's key")
	options.Key, options.Forms = key, []string{signtest.FormBundle}
	signtest.Sign(t, registry.Registry, signedRepo, target, options)
	output, refused, fault := try(t.Context(), node, pod, "signed", reference, "/bin/cat", "/who")
	if refused != nil || fault != nil || output != "signed" {
		t.Errorf("signed: %q, %v, %v", output, refused, fault)
	}
	_, refused, fault = try(t.Context(), node, pod, "wants-nobody", reference, "/bin/cat", "/who")
	if fault != nil {
		t.Fatal(fault)
	}
	wantRefused(t, refused, "blocked by policy: the image lacks the signature that the container wants")
}
