package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coffer-project/coffer/integration/harness"
	"github.com/coffer-project/coffer/integration/program"
	"github.com/coffer-project/coffer/integration/registrytest"
	"github.com/coffer-project/coffer/proto/initdata"
	"github.com/coffer-project/coffer/shim/sandbox"
)

const (
	handler = "coffer"
	// markerDir holds what the demo adds to an image: the marker and a static program that can hash it.
	markerDir  = "coffer-demo"
	repository = "demo/app"
	plainTag   = repository + "-plain:v1"

	// ownImageTime is how long an image of the user's own may run before its output is taken.
	ownImageTime = 20 * time.Second
)

// hashCommand prints the marker's hash.
var hashCommand = []string{"/" + markerDir + "/busybox", "sha256sum", "/" + markerDir + "/marker"}

// demo carries one demonstration through its steps.
type demo struct {
	node   *harness.Node
	owner  *owner
	layout *harness.Layout
	marker []byte
	own    bool
	report report
}

// prepare builds the image, or takes the user's, and adds a layer with a random marker to it.
func (d *demo) prepare(ctx context.Context, image string) (err error) {
	dir := filepath.Join(d.node.Dir, "image")
	if d.own = image != ""; d.own {
		program.Say("taking the image %s", image)
		if d.layout, err = d.take(ctx, image, dir); err != nil {
			return err
		}
	} else {
		program.Say("building an image")
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		busybox, err := harness.Busybox(d.node.Tools.Busybox)
		if err != nil {
			return err
		}
		config := ocispec.ImageConfig{Env: []string{"PATH=/bin"}, Cmd: []string{"/bin/sh"}}
		if d.layout, err = harness.NewLayout(dir, config); err != nil {
			return err
		}
		if err := d.layout.AddLayer(busybox); err != nil {
			return err
		}
	}

	secret := make([]byte, 32)
	_, _ = rand.Read(secret) // never fails: documented by crypto/rand
	d.marker = []byte("coffer-marker-" + hex.EncodeToString(secret))
	shell, err := os.ReadFile(d.node.Tools.Busybox)
	if err != nil {
		return err
	}
	if err := d.layout.AddLayer(registrytest.NewLayer(registrytest.Gzip,
		registrytest.Entry{Name: markerDir + "/"},
		registrytest.Entry{Name: markerDir + "/marker", Body: string(d.marker), Mode: 0o444},
		registrytest.Entry{Name: markerDir + "/busybox", Body: string(shell), Mode: 0o555},
	)); err != nil {
		return err
	}
	program.Say("pushing it unencrypted, for runc")
	return d.node.Ctl(ctx, true, "image", "copy", "oci:"+dir, d.node.HTTP.Host+"/"+plainTag, "--plain-http")
}

// take copies an image from the user's layout or registry. It runs outside the node's network: the registry may be
// anywhere.
func (d *demo) take(ctx context.Context, image, dir string) (*harness.Layout, error) {
	if err := d.node.Ctl(ctx, false, "image", "copy", image, "oci:"+dir); err != nil {
		return nil, err
	}
	return harness.OpenLayout(dir)
}

// runEncrypted encrypts the image into registry and runs it in a VM.
func (d *demo) runEncrypted(ctx context.Context, registry *harness.Registry) (retErr error) {
	scheme, _, _ := strings.Cut(registry.URL(), ":")
	key := "kbs:///demo/image-key/" + scheme
	reference := registry.Host + "/" + repository + ":v1"
	program.Say("owner: encrypting and signing %s, and writing its pod's initdata", reference)
	if err := d.owner.encrypt(ctx, registry, d.layout.Dir, reference, key); err != nil {
		return err
	}
	if err := d.owner.sign(ctx, registry, reference); err != nil {
		return err
	}
	wanted := pod{name: "demo-" + scheme, registry: registry, tees: []string{initdata.ForgedSNP}, containers: []container{{"hash", reference, hashCommand}}}
	if d.own && registry.Plain {
		wanted.containers = append(wanted.containers, container{Name: "own", Image: reference})
	}
	annotations, err := d.owner.document(ctx, wanted)
	if err != nil {
		return err
	}
	mark, err := registry.Mark()
	if err != nil {
		return err
	}

	program.Say("host: running %s in a VM", reference)
	started := time.Now()
	pod, err := d.node.CRI.RunPod(ctx, handler, d.podConfig(wanted.name, annotations))
	if err != nil {
		return err
	}
	defer func() {
		if err := pod.Remove(context.WithoutCancel(ctx)); retErr == nil {
			retErr = err
		}
	}()
	output, total, err := d.hashMarker(ctx, pod, reference, started)
	if err != nil {
		return err
	}
	r := run{
		Registry: registry.URL(), Image: reference, ContainerOutput: output, expected: fmt.Sprintf("%x", sha256.Sum256(d.marker)),
	}
	told, err := pod.Report(ctx)
	if err != nil {
		return err
	}
	if r.PhasesMillis, r.ImageDigest, err = phaseTable(told, total); err != nil {
		return err
	}
	r.GuestBoot = map[string]float64{}
	for _, phase := range told.GuestBoot {
		r.GuestBoot[phase.Name] = float64(phase.Micros) / 1000
	}
	if d.report.Machine, err = describeMachine(ctx, d.node, pod, told.VMPID); err != nil {
		return err
	}
	if d.own && registry.Plain {
		if d.report.OwnOutput, err = d.runOwn(ctx, pod, reference); err != nil {
			return err
		}
	}
	if r.RegistryRequests, err = d.requests(registry, mark, pod.IP); err != nil {
		return err
	}
	if r.PlaintextOnHost, r.PlaintextFiles, err = d.search(); err != nil {
		return err
	}
	if r.KeyReleasedTo, err = d.released(key, told); err != nil {
		return err
	}
	d.report.Runs = append(d.report.Runs, r)
	return nil
}

// hashMarker pulls the image into the pod, runs a container that hashes the marker, and returns its output and the
// time since started.
func (d *demo) hashMarker(ctx context.Context, pod *harness.Pod, reference string, started time.Time) (string, time.Duration, error) {
	if err := pod.Pull(ctx, reference); err != nil {
		return "", 0, err
	}
	container, err := pod.Create(ctx, "hash", reference, hashCommand...)
	if err != nil {
		return "", 0, err
	}
	if err := container.Start(ctx); err != nil {
		return "", 0, err
	}
	total := time.Since(started)
	status, err := container.Wait(ctx)
	if err != nil {
		return "", 0, err
	}
	output, err := container.Output()
	if err == nil && status.ExitCode != 0 {
		err = fmt.Errorf("the container ended with exit code %d: %s", status.ExitCode, output)
	}
	return output, total, err
}

// runOwn runs the image's own command for a while and returns what it printed.
func (d *demo) runOwn(ctx context.Context, pod *harness.Pod, reference string) (string, error) {
	program.Say("running the image's own command for up to %s", ownImageTime)
	container, err := pod.Create(ctx, "own", reference)
	if err != nil {
		return "", err
	}
	if err := container.Start(ctx); err != nil {
		return "", err
	}
	waitCtx, cancel := context.WithTimeout(ctx, ownImageTime)
	defer cancel()
	if _, err := container.Wait(waitCtx); err != nil && ctx.Err() != nil {
		return "", err
	}
	return container.Output()
}

// phaseTable translates the report of a pod with one container.
func phaseTable(told *sandbox.Report, total time.Duration) (map[string]float64, string, error) {
	if len(told.Containers) != 1 {
		return nil, "", fmt.Errorf("the pod reports %d containers, not one", len(told.Containers))
	}
	millis := map[string]float64{"total": float64(total.Microseconds()) / 1000}
	add := func(list []sandbox.Phase) {
		for _, phase := range list {
			millis[phase.Name] = float64(phase.Micros) / 1000
		}
	}
	add(told.Boot)
	var digest string
	for _, container := range told.Containers {
		add(container.Pull)
		millis["start"] = float64(container.StartMicros) / 1000
		digest = container.ManifestDigest
	}
	for _, phase := range phases {
		if _, ok := millis[phase]; !ok {
			return nil, "", fmt.Errorf("the pod does not report the phase %q", phase)
		}
	}
	return millis, digest, nil
}

// requests counts what host and guest asked of the registry.
func (d *demo) requests(registry *harness.Registry, mark int64, podIP string) (map[string]counts, error) {
	all, err := registry.Requests(mark, repository)
	if err != nil {
		return nil, err
	}
	byParty := map[string]counts{"host": {}, "guest": {}}
	for _, request := range all {
		party := "host"
		switch request.Client {
		case podIP:
			party = "guest"
		case harness.NodeIP:
		default:
			return nil, fmt.Errorf("a stranger asked the registry: %+v", request)
		}
		c := byParty[party]
		switch {
		case strings.Contains(request.Path, "/manifests/"):
			c.Manifest++
		case strings.HasSuffix(request.Path, "/blobs/"+d.layout.Manifest.Config.Digest.String()):
			c.Config++
		default:
			c.Layer++
		}
		byParty[party] = c
	}
	return byParty, nil
}

// search looks for the marker in everything that snapshotter, shim and containerd keep, and in what QEMU was given.
// The VM's memory is not among it: on a confidential machine the host reads only ciphertext there.
func (d *demo) search() (int, []string, error) {
	return countHits(d.marker, append(d.node.HostState(), d.node.Tools.Kernel, d.node.Tools.Initrd)...)
}

// runPlain runs the unencrypted image with runc: the search must find the marker now.
func (d *demo) runPlain(ctx context.Context) (retErr error) {
	program.Say("control: running the unencrypted image with runc")
	reference := d.node.HTTP.Host + "/" + plainTag
	pod, err := d.node.CRI.RunPod(ctx, "", d.node.CRI.PodConfig("control", nil))
	if err != nil {
		return err
	}
	defer func() {
		if err := pod.Remove(context.WithoutCancel(ctx)); retErr == nil {
			retErr = err
		}
	}()
	if _, _, err := d.hashMarker(ctx, pod, reference, time.Now()); err != nil {
		return err
	}
	d.report.SearchControl, _, err = d.search()
	return err
}

// released finds in the broker's audit log to whom it gave the key, and explains it.
func (d *demo) released(key string, told *sandbox.Report) (*release, error) {
	records, err := d.node.Broker.Released(key)
	if err != nil || len(records) == 0 {
		return nil, err
	}
	for _, container := range told.Containers {
		return explain(records[len(records)-1], container)
	}
	return nil, errors.New("the pod reports no container")
}

// podConfig is a pod as kubelet makes it: its containers do not see one another's processes.
func (d *demo) podConfig(name string, annotations map[string]string) *runtime.PodSandboxConfig {
	config := d.node.CRI.PodConfig(name, annotations)
	config.Linux.SecurityContext.NamespaceOptions = &runtime.NamespaceOption{Pid: runtime.NamespaceMode_CONTAINER}
	return config
}
