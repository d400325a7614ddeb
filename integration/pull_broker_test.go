package integration

import (
	"strings"
	"testing"

	"github.com/coffer-project/coffer/integration/harness"
	"github.com/coffer-project/coffer/integration/registrytest"
	"github.com/coffer-project/coffer/owner/broker/brokertest"
	"github.com/coffer-project/coffer/proto/initdata"
)

// brokerFaults come in this order: those of the handshake first, as a pod attests only until it has succeeded once.
// {broker} and {key} stand for the broker's URL and the key's id. A broker that is silent is pullSmallPod's.
var brokerFaults = []struct {
	name    string
	failure brokertest.Failure
	want    []string
}{
	{"hangs-up", brokertest.HangUp, []string{"key broker {broker}: authentication failed after 5 attempts", "check that the broker runs"}},
	{"refuses-guest", brokertest.RefuseAuth, []string{"key broker {broker} refused authentication of this guest (tee sample)", `"refused by test"`}},
	{"refuses-evidence", brokertest.RefuseAttest, []string{"key broker {broker} refused attestation of this guest (tee sample)", "knows the guest's measurements"}},
	{"garbage", brokertest.Garbage, []string{"key broker {broker} gave a senseless answer to authentication", "check that the URL belongs to a key broker"}},
	{"garbage-token", brokertest.GarbageToken, []string{"key broker {broker} gave a senseless answer to attestation"}},
	{"endless", brokertest.Endless, []string{"key broker {broker} gave a senseless answer to authentication: more than"}},
	{"broken", brokertest.ServerError, []string{"key broker {broker}: authentication failed after 5 attempts", "status 500"}},
	{"redirect", brokertest.Redirect, []string{"key broker {broker} gave a senseless answer to authentication: status 307"}},
	{"garbage-key", brokertest.GarbageResource, []string{"key broker {broker} gave a senseless answer to the request for resource {key}"}},
	{"forgets", brokertest.ForgetSessions, []string{"key broker {broker} refused resource {key}", "who are you?"}},
	{"policy", brokertest.RefuseResource, []string{"key broker {broker} refused resource {key}: policy denied", "check the broker's resource policy"}},
	{"no-key", brokertest.NoSuchResource, []string{"key broker {broker} has no resource {key}", "cofferctl kbs resource put"}},
	{"wrong-key", brokertest.WrongKey, []string{"key {key}", "the broker holds another key than the one the image was encrypted with"}},
}

// pullBrokerFaults asks one broker for the key of one image again and again in one pod, while the broker fails in one
// way after the other. As soon as it is sound the image runs, in the same pod: no failure is kept, not even a wrong key. The pod has all
// kinds of secrets, and logs as much as it can: none of them may be in what the host has afterwards.
func pullBrokerFaults(t *testing.T, node *harness.Node) {
	broker, watched := startBroker(t, node), watchLeaks(t, node)
	registry, locked := openShop(t, node), openShop(t, node)
	const key = "kbs:///broker/faults/kek"
	base := []registrytest.Layer{busyboxLayer(t, node)}
	plain := registry.put("base", registrytest.NewImage(base, nil, nil))
	kek := newKEK(t, broker, key)
	watched.add("KEK", kek)
	watched.add("wrong KEK", brokertest.WrongKeyBytes)
	watched.add("broker admin's key", broker.AdminKey.Seed())
	watched.addKeys(t, node)
	reference := registry.sealed(t, "app", key, kek, registrytest.NewImage(append(base,
		registrytest.NewLayer(registrytest.Gzip, registrytest.Files(map[string]string{"secret": "opened"})...)), nil, nil), onlyLayer(1))
	sealedLayer := registry.manifest(t, "app").Layers[1]
	layer := sealedLayer.Digest.String()
	watched.addLayerKey(t, sealedLayer.Annotations, kek)

	annotations, err := node.PodAnnotations(harness.Guest{
		BrokerURL: broker.URL, PlainRegistries: []string{registry.host(), locked.host()}, Credentials: loginResource,
		REST: []string{initdata.RESTResource, initdata.RESTToken},
	})
	if err != nil {
		t.Fatal(err)
	}
	pod := runHandlerPod(t, node, debugHandler, node.CRI.PodConfig("broker-faults", annotations))
	keep(t, pod, plain)
	pull(t, pod, reference)
	words := strings.NewReplacer("{broker}", broker.URL, "{key}", key)
	for _, tc := range brokerFaults {
		t.Run(tc.name, func(t *testing.T) {
			broker.Fail(tc.failure)
			defer broker.Fail(brokertest.FailNothing)
			_, refused, fault := try(t.Context(), node, pod, tc.name, reference, "/bin/true")
			if fault != nil {
				t.Fatal(fault)
			}
			want := []string{reference, "layer " + layer}
			for _, part := range tc.want {
				want = append(want, words.Replace(part))
			}
			wantRefused(t, refused, want...)
			watched.tell(refused)
			if n := registry.Count(registrytest.LayerBlob, "GET"); n != 1 {
				t.Errorf("%d layers were fetched, and the base is the only one that the guest may have wanted", n)
			}
		})
	}
	if got := pullAndRun(t, node, pod, "sound", reference, "/bin/cat", "/secret"); got != "opened" {
		t.Errorf("with a sound broker the container printed %q", got)
	}
	v := newVault(t, node, pod, broker, watched, plain)
	t.Run("sealed-variables", v.variables)
	t.Run("sealed-files", v.files)
	t.Run("rest", v.askGuest)
	t.Run("login", func(t *testing.T) { v.login(t, locked, registrytest.NewImage(base, nil, nil)) })
	report, err := pod.Report(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Run("leaks", func(t *testing.T) { watched.check(t, node, broker, report) })
}
