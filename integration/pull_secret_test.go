package integration

import (
	"context"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coffer-project/coffer/integration/harness"
	"github.com/coffer-project/coffer/owner/broker/brokertest"
	"github.com/coffer-project/coffer/owner/sign"
	"github.com/coffer-project/coffer/proto/sealed"
)

// sealedVariables creates containers with a sealed variable in a pod: while the broker keeps the secret back the container fails and says
// which variable it is, and afterwards, in the same pod, the program has the secret. An exec has it as well.
func sealedVariables(t *testing.T, node *harness.Node, pod *harness.Pod, broker *brokertest.Broker, reference string) {
	t.Helper()
	const name, signer, plaintext = "kbs:///broker/secret/db", "kbs:///broker/signing/team", "correct horse battery staple"
	key, err := sign.Generate("ecdsa-p256")
	if err != nil {
		t.Fatal(err)
	}
	public, err := key.EncodePublic()
	if err != nil {
		t.Fatal(err)
	}
	broker.Put(t, name, []byte(plaintext))
	broker.Put(t, signer, public)
	text, err := (&sealed.Vault{Provider: sealed.ProviderKBS, Name: name}).Sign(signer, key.SignDigest)
	if err != nil {
		t.Fatal(err)
	}
	container := func(id, value string) *runtime.ContainerConfig {
		return containerOf(pod, id, reference, func(c *runtime.ContainerConfig) {
			c.Command = []string{"/bin/sh", "-c", `echo "$PASSWORD"; exec sleep 1000`}
			c.Envs = []*runtime.KeyValue{{Key: "PASSWORD", Value: []byte(value)}}
		})
	}
	broker.Fail(brokertest.RefuseResource)
	_, refused := startPolicy(t, node, pod, container("kept-back", text))
	broker.Fail(brokertest.FailNothing)
	wantRefused(t, refused, `variable "PASSWORD"`, name, "policy denied")
	_, refused = startPolicy(t, node, pod, container("changed", strings.Replace(text, ".", ".x", 2)))
	wantRefused(t, refused, `variable "PASSWORD"`, "sealed secret")

	c, refused := startPolicy(t, node, pod, container("opened", text))
	if refused != nil {
		t.Fatal(refused)
	}
	printed(t, c, plaintext+"\n")
	ctx, cancel := context.WithTimeout(t.Context(), criTimeout)
	defer cancel()
	got, err := node.CRI.Runtime.ExecSync(ctx, &runtime.ExecSyncRequest{ContainerId: c.ID, Cmd: []string{"/bin/sh", "-c", `echo "$PASSWORD"`}})
	if err != nil || string(got.GetStdout()) != plaintext+"\n" {
		t.Errorf("an exec printed %q, %v", got.GetStdout(), err)
	}
	shim, err := node.CRI.Runtime.ContainerStatus(ctx, &runtime.ContainerStatusRequest{ContainerId: c.ID, Verbose: true})
	if err != nil || strings.Contains(shim.String(), plaintext) {
		t.Errorf("the status shows the secret, or cannot be had: %v", err)
	}
	if err := drop(ctx, node, c); err != nil {
		t.Error(err)
	}
}

// askGuest has a program in a pod ask its guest for a resource, and for what the measured document does not list.
func askGuest(t *testing.T, node *harness.Node, pod *harness.Pod, broker *brokertest.Broker, reference string) {
	t.Helper()
	broker.Put(t, "kbs:///broker/secret/asked", []byte("by a program"))
	const script = `wget -qO- http://127.0.0.1:8006/cdh/resource/broker/secret/asked; wget -qO- "http://127.0.0.1:8006/aa/token?token_type=kbs" 2>&1 || true`
	output, refused, fault := try(t.Context(), node, pod, "asks", reference, "/bin/sh", "-c", script)
	if refused != nil || fault != nil {
		t.Fatalf("%v, %v", refused, fault)
	}
	if !strings.HasPrefix(output, "by a program") || !strings.Contains(output, "404") {
		t.Errorf("the program got %q", output)
	}
}
