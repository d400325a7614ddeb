package integration

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coffer-project/coffer/integration/harness"
	"github.com/coffer-project/coffer/integration/registrytest"
	"github.com/coffer-project/coffer/owner/broker/brokertest"
	"github.com/coffer-project/coffer/owner/sign"
	"github.com/coffer-project/coffer/proto/sealed"
)

// loginResource has the guest's logins for registries.
const loginResource = "kbs:///broker/registry/auth"

// signerResource has the key that counts on sealed secrets.
const signerResource = "kbs:///broker/signing/team"

// vault is a pod whose programs need secrets. They show them by digest, since what they print is on the host.
type vault struct {
	node      *harness.Node
	pod       *harness.Pod
	broker    *brokertest.Broker
	watched   *leaks
	reference string
	key       *sign.Key
}

func newVault(t *testing.T, node *harness.Node, pod *harness.Pod, broker *brokertest.Broker, watched *leaks, reference string) *vault {
	t.Helper()
	key, err := sign.Generate("ecdsa-p256")
	if err != nil {
		t.Fatal(err)
	}
	public, err := key.EncodePublic()
	if err != nil {
		t.Fatal(err)
	}
	broker.Put(t, signerResource, public)
	return &vault{node, pod, broker, watched, reference, key}
}

// put gives the broker a secret, and seals its name.
func (v *vault) put(t *testing.T, name, secret string) string {
	t.Helper()
	v.broker.Put(t, name, []byte(secret))
	v.watched.add(name+" "+secret[:4], []byte(secret))
	text, err := (&sealed.Vault{Provider: sealed.ProviderKBS, Name: name}).Sign(signerResource, v.key.SignDigest)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func digestOf(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// refused creates a container that must not come to be.
func (v *vault) refused(t *testing.T, config *runtime.ContainerConfig, want ...string) {
	t.Helper()
	_, refused := startPolicy(t, v.node, v.pod, config)
	wantRefused(t, refused, want...)
	v.watched.tell(refused)
}

// ask runs a command in a container, of which the host keeps no output.
func (v *vault) ask(t *testing.T, c *harness.Container, script string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), criTimeout)
	defer cancel()
	got, err := v.node.CRI.Runtime.ExecSync(ctx, &runtime.ExecSyncRequest{ContainerId: c.ID, Cmd: []string{"/bin/sh", "-c", script}})
	if err != nil {
		t.Fatal(err)
	}
	return string(got.GetStdout())
}

func (v *vault) drop(t *testing.T, c *harness.Container) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), criTimeout)
	defer cancel()
	if err := drop(ctx, v.node, c); err != nil {
		t.Error(err)
	}
}

// variables creates containers with a sealed variable: while the broker keeps the secret back the container fails and says which variable
// it is, and afterwards, in the same pod, the program has the secret. An exec has it as well.
func (v *vault) variables(t *testing.T) {
	const name, plaintext = "kbs:///broker/secret/db", "correct horse battery staple"
	text := v.put(t, name, plaintext)
	container := func(id, value string) *runtime.ContainerConfig {
		return containerOf(v.pod, id, v.reference, func(c *runtime.ContainerConfig) {
			c.Command = []string{"/bin/sh", "-c", `printf %s "$PASSWORD" | sha256sum; exec sleep 1000`}
			c.Envs = []*runtime.KeyValue{{Key: "PASSWORD", Value: []byte(value)}}
		})
	}
	v.broker.Fail(brokertest.RefuseResource)
	v.refused(t, container("kept-back", text), `variable "PASSWORD"`, name, "policy denied")
	v.broker.Fail(brokertest.FailNothing)
	v.refused(t, container("changed", strings.Replace(text, ".", ".x", 2)), `variable "PASSWORD"`, "sealed secret")

	c, refused := startPolicy(t, v.node, v.pod, container("opened", text))
	if refused != nil {
		t.Fatal(refused)
	}
	printed(t, c, digestOf(plaintext)+"  -\n")
	if got := v.ask(t, c, `printf %s "$PASSWORD"`); got != plaintext {
		t.Errorf("an exec printed %q", got)
	}
	status, err := v.node.CRI.Runtime.ContainerStatus(t.Context(), &runtime.ContainerStatusRequest{ContainerId: c.ID, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(&v.watched.told, status)
	v.drop(t, c)
}

// files mounts a secret with a sealed key, as a folder and by itself. A program sees it open, and its next version, too; one that cannot
// be opened fails a new container, and an old one keeps what it has.
func (v *vault) files(t *testing.T) {
	const name, first, second = "kbs:///broker/secret/file", "first secret of a file", "second secret of a file"
	k := newKubelet(t)
	volume := k.volume(t, "secret", "creds")
	k.write(t, volume, map[string]string{"password": v.put(t, name, first) + "\n", "user": "postgres"})
	single := k.subPath(t, volume, "c", 0, "password")
	container := func(id string) *runtime.ContainerConfig {
		return containerOf(v.pod, id, v.reference, func(c *runtime.ContainerConfig) {
			c.Command = []string{"/bin/sleep", "1000"}
			bind(map[string]string{"ro:/creds": volume, "ro:/single": single})(c)
		})
	}
	v.broker.Fail(brokertest.RefuseResource)
	v.refused(t, container("files-kept-back"), "mount at /", name, "policy denied")
	v.broker.Fail(brokertest.FailNothing)
	c, refused := startPolicy(t, v.node, v.pod, container("files"))
	if refused != nil {
		t.Fatal(refused)
	}
	const look = "cat /creds/password; echo; cat /single; echo; cat /creds/user; stat -c %a%u /creds/..data/password"
	if got, want := v.ask(t, c, look), first+"\n"+first+"\npostgres6440\n"; got != want {
		t.Errorf("the program finds %q, want %q", got, want)
	}
	eventually := func(want string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), criTimeout)
		defer cancel()
		if err := harness.Eventually(ctx, func(context.Context) error {
			if got := v.ask(t, c, "cat /creds/password /creds/user"); got != want {
				return fmt.Errorf("the program finds %q", got)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	k.write(t, volume, map[string]string{"password": v.put(t, name, second), "user": "mysql"})
	eventually(second + "mysql")
	// The copy of a version that cannot be opened is tried again and again.
	asked := v.broker.Requests("resource")
	missing := strings.Replace(v.put(t, name, second), "sealed.", "sealed.x", 1)
	k.write(t, volume, map[string]string{"password": missing, "user": "oracle"})
	v.refused(t, container("files-damaged"), "mount at /creds", "password", "sealed secret")
	eventually(second + "mysql")
	if now := v.broker.Requests("resource"); now != asked {
		t.Errorf("the broker was asked %d times for what cannot be read", now-asked)
	}
	k.write(t, volume, map[string]string{"password": "sealed", "user": "plain"})
	eventually("sealedplain")
	v.drop(t, c)
}

// askGuest has a program ask its guest for a resource and a token, and for what the measured document does not list.
func (v *vault) askGuest(t *testing.T) {
	v.put(t, "kbs:///broker/secret/asked", "asked for by a program")
	c, refused := startPolicy(t, v.node, v.pod, containerOf(v.pod, "asks", v.reference, func(c *runtime.ContainerConfig) {
		c.Command = []string{"/bin/sleep", "1000"}
	}))
	if refused != nil {
		t.Fatal(refused)
	}
	if got := v.ask(t, c, "wget -qO- http://127.0.0.1:8006/cdh/resource/broker/secret/asked"); got != "asked for by a program" {
		t.Errorf("the program got %q", got)
	}
	if got := v.ask(t, c, "wget -qO- http://127.0.0.1:8006/aa/evidence?runtime_data=eA 2>&1"); !strings.Contains(got, "404") {
		t.Errorf("the program got evidence: %q", got)
	}
	var token struct {
		Token string `json:"token"`
		Key   string `json:"tee_keypair"`
	}
	if err := json.Unmarshal([]byte(v.ask(t, c, `wget -qO- "http://127.0.0.1:8006/aa/token?token_type=kbs"`)), &token); err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode([]byte(token.Key))
	if block == nil || strings.Count(token.Token, ".") != 2 {
		t.Fatal("the program got no token with a key")
	}
	if _, err := x509.ParsePKCS8PrivateKey(block.Bytes); err != nil {
		t.Fatal(err)
	}
	v.watched.add("the TEE's key", block.Bytes)
	v.watched.add("the token", []byte(token.Token))
	v.drop(t, c)
}

// login pulls from a registry that wants a password, which the guest has from the broker and the host has not.
func (v *vault) login(t *testing.T, locked *shop, img *registrytest.Image) {
	t.Helper()
	const password = "registry password of the guest"
	reference := locked.put("locked", img)
	pull(t, v.pod, reference) // the host asks for manifests before the registry is locked
	auth := base64.StdEncoding.EncodeToString([]byte("puller:" + password))
	v.broker.Put(t, loginResource, fmt.Appendf(nil, `{"auths":{%q:{"auth":%q}}}`, locked.host(), auth))
	v.watched.add("registry password", []byte(password))
	locked.RequireLogin("puller", password)
	defer locked.RequireLogin("", "")
	if output, refused, fault := try(t.Context(), v.node, v.pod, "locked", reference, "/bin/echo", "in"); refused != nil || fault != nil || output != "in\n" {
		t.Errorf("%q, %v, %v", output, refused, fault)
	}
}
