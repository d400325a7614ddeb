package podpolicy

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const pod = `apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
---
apiVersion: apps/v1
kind: Deployment
spec:
  template:
    spec:
      runtimeClassName: coffer
      securityContext: {runAsUser: 1000, fsGroup: 2000}
      volumes:
      - {name: settings, configMap: {name: settings}}
      - {name: scratch, emptyDir: {}}
      - {name: creds, secret: {secretName: s}}
      - {name: both, projected: {sources: [{configMap: {name: a}}, {secret: {name: s}}]}}
      - {name: token, projected: {sources: [{serviceAccountToken: {path: t}}], defaultMode: 256}}
      - {name: model, image: {reference: model, pullPolicy: Always}}
      - {name: disk, persistentVolumeClaim: {claimName: d}}
      initContainers:
      - {name: setup, image: app, command: [/setup]}
      - {name: proxy, image: proxy, restartPolicy: Always, securityContext: {runAsUser: 0, capabilities: {add: [NET_ADMIN]}}}
      containers:
      - name: app
        image: app
        args: ["--listen=$(ADDRESS)", "$$HOME", "$(NOBODY)"]
        env:
        - {name: PORT_NUMBER, value: "80"}
        - {name: ADDRESS, value: "127.0.0.1:$(PORT_NUMBER)"}
        - {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
        - {name: PASSWORD, valueFrom: {secretKeyRef: {name: s, key: p}}}
        volumeMounts:
        - {name: settings, mountPath: /etc/app/}
        - {name: scratch, mountPath: /scratch, subPath: a}
        - {name: creds, mountPath: /creds}
        - {name: both, mountPath: /both}
        - {name: token, mountPath: /token}
        - {name: model, mountPath: /model}
        - {name: model, mountPath: /weights, subPath: data/weights/}
        volumeDevices: [{name: disk, devicePath: /dev/xvda}]
        resources: {limits: {cpu: 500m, memory: 1Gi, nvidia.com/pgpu: "2"}, requests: {cpu: 100m}}
        livenessProbe: {exec: {command: [/probe, -q]}, periodSeconds: 5}
        lifecycle: {preStop: {exec: {command: [/stop]}}}
        ports: [{containerPort: 80}]
`

func lookup(_ context.Context, name string) (*Image, error) {
	images := map[string]*Image{
		"app": {Digests: []string{"sha256:app", "sha256:app-index"}, Config: ocispec.ImageConfig{
			Entrypoint: []string{"/app"}, Cmd: []string{"serve"}, WorkingDir: "srv/", Env: []string{"PATH=/bin", "MODE=safe"},
		}},
		"model":   {Digests: []string{"sha256:model", "sha256:model-index"}},
		"proxy":   {Digests: []string{"sha256:proxy"}, Config: ocispec.ImageConfig{Cmd: []string{"/proxy"}}},
		"nothing": {Digests: []string{"sha256:nothing"}},
	}
	if img := images[name]; img != nil {
		return img, nil
	}
	return nil, errdefs.ErrNotFound
}

// TestGenerate holds what the rules are told against what the manifest and the images say.
func TestGenerate(t *testing.T) {
	policy, err := Generate(t.Context(), []byte(pod), Options{Lookup: lookup, AnyValue: []string{"PASSWORD"}, NoLogs: []string{"proxy"}})
	if err != nil {
		t.Fatal(err)
	}
	_, text, ok := strings.Cut(strings.TrimSuffix(policy, ")\n"), "policy_data := object.union({}, ")
	if !ok {
		t.Fatal("policy has no data")
	}
	var d data
	if err := json.Unmarshal([]byte(text), &d); err != nil {
		t.Fatal(err)
	}
	compact := func(v any) string {
		raw, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	app, proxy, setup := d.Containers["app"], d.Containers["proxy"], d.Containers["setup"]
	for what, pair := range map[string][2]string{
		"digests":          {compact(app.Digests), `["sha256:app","sha256:app-index"]`},
		"arguments":        {compact(app.Args), `["/app","--listen=127.0.0.1:80","$HOME","$(NOBODY)"]`},
		"command":          {compact(setup.Args), `["/setup"]`},
		"image's command":  {compact(proxy.Args), `["/proxy"]`},
		"folder":           {app.Cwd + proxy.Cwd, "/srv/"},
		"variables":        {compact(app.Env), `{"ADDRESS":"127.0.0.1:80","PORT_NUMBER":"80"}`},
		"other variables":  {compact(app.EnvPatterns), `{"PASSWORD":"^","POD_IP":"` + anyAddress + `"}`},
		"image variables":  {compact(app.ImageEnv), `["PATH=/bin","MODE=safe"]`},
		"mounts":           {compact(app.Mounts), `{"/both":"secret","/creds":"secret","/etc/app":"copied","/model":"image","/scratch":"memory","/token":"copied","/weights":"image"}`},
		"image volumes":    {compact(app.Images), `{"/model":{"digests":["sha256:model","sha256:model-index"],"path":""},"/weights":{"digests":["sha256:model","sha256:model-index"],"path":"data/weights"}}`},
		"devices":          {compact(app.Devices) + compact(app.GPUs) + compact(proxy.Devices) + compact(proxy.GPUs), `["/dev/xvda"]2[]0`},
		"programs":         {compact(app.Exec), `[["/probe","-q"],["/stop"]]`},
		"users":            {compact([]*int64{app.UID, proxy.UID, app.GID}), `[1000,0,null]`},
		"groups":           {compact([][]int64{app.Groups, proxy.Groups}), `[[2000],[2000]]`},
		"order":            {compact([][]string{setup.After, proxy.After, app.After, setup.Beside, proxy.Beside, app.Beside}), `[[],["setup"],["setup","proxy"],[],[],["proxy"]]`},
		"output":           {compact([][]string{app.Logs, proxy.Logs}), `[["stdout","stderr"],[]]`},
		"capabilities":     {proxy.Capabilities[len(proxy.Capabilities)-1], "CAP_NET_ADMIN"},
		"app capabilities": {app.Capabilities[len(app.Capabilities)-1], "CAP_SYS_CHROOT"},
	} {
		if pair[0] != pair[1] {
			t.Errorf("%s: %s, want %s", what, pair[0], pair[1])
		}
	}
}

// TestGenerateRefuses: what the rules cannot bind is not left out in silence.
func TestGenerateRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		manifest string
		want     string
	}{
		"no pod":           {"kind: Service\n", "no Pod"},
		"empty":            {"", "no Pod"},
		"not YAML":         {"kind: [", "manifest"},
		"two pods":         {"kind: Pod\nspec: {containers: [{name: a, image: app}]}\n---\nkind: Pod\nspec: {containers: [{name: a, image: app}]}\n", "more than one pod"},
		"no containers":    {"kind: Pod\nspec: {}\n", "no containers"},
		"no template":      {"kind: Job\nspec: {}\n", "spec.template"},
		"unknown field":    {"kind: Pod\nspec: {containers: [{name: a, image: app, commnad: [x]}]}\n", "commnad"},
		"unknown of pods":  {"kind: Pod\nspec: {frobnicate: 1, containers: [{name: a, image: app}]}\n", "frobnicate"},
		"host network":     {"kind: Pod\nspec: {hostNetwork: true, containers: [{name: a, image: app}]}\n", "hostNetwork"},
		"same name":        {"kind: Pod\nspec: {containers: [{name: a, image: app}, {name: a, image: app}]}\n", `"a"`},
		"no such image":    {"kind: Pod\nspec: {containers: [{name: a, image: other}]}\n", "container a"},
		"nothing to run":   {"kind: Pod\nspec: {containers: [{name: a, image: nothing}]}\n", "what to run"},
		"secret":           {"kind: Pod\nspec: {containers: [{name: a, image: app, env: [{name: P, valueFrom: {secretKeyRef: {}}}]}]}\n", "--any-value P"},
		"whole map":        {"kind: Pod\nspec: {containers: [{name: a, image: app, envFrom: [{configMapRef: {name: x}}]}]}\n", "envFrom"},
		"later value":      {"kind: Pod\nspec: {containers: [{name: a, image: app, args: [$(KUBERNETES_SERVICE_HOST)]}]}\n", "when the pod runs only"},
		"folder of host":   {"kind: Pod\nspec: {volumes: [{name: v, hostPath: {path: /}}], containers: [{name: a, image: app, volumeMounts: [{name: v, mountPath: /v}]}]}\n", "hostPath"},
		"volume not there": {"kind: Pod\nspec: {containers: [{name: a, image: app, volumeMounts: [{name: v, mountPath: /v}]}]}\n", "no volume v"},
		"block volume":     {"kind: Pod\nspec: {containers: [{name: a, image: app, volumeDevices: [{name: v, devicePath: /dev/v}]}]}\n", "no volume v"},
		"block, no path":   {"kind: Pod\nspec: {volumes: [{name: v, ephemeral: {}}], containers: [{name: a, image: app, volumeDevices: [{name: v}]}]}\n", "devicePath"},
		"files of a disk":  {"kind: Pod\nspec: {volumes: [{name: v, persistentVolumeClaim: {claimName: c}}], containers: [{name: a, image: app, volumeMounts: [{name: v, mountPath: /v}]}]}\n", "persistentVolumeClaim"},
		"no such volume":   {"kind: Pod\nspec: {volumes: [{name: v, image: {reference: other}}], containers: [{name: a, image: app, volumeMounts: [{name: v, mountPath: /v}]}]}\n", "volume v"},
		"half a GPU":       {"kind: Pod\nspec: {containers: [{name: a, image: app, resources: {limits: {nvidia.com/pgpu: 500m}}}]}\n", "no number of GPUs"},
		"other devices":    {"kind: Pod\nspec: {containers: [{name: a, image: app, resources: {limits: {amd.com/gpu: 1}}}]}\n", "amd.com/gpu"},
		"privileged":       {"kind: Pod\nspec: {containers: [{name: a, image: app, securityContext: {privileged: true}}]}\n", "privileged"},
		"group alone":      {"kind: Pod\nspec: {securityContext: {runAsGroup: 7}, containers: [{name: a, image: app}]}\n", "runAsUser"},
		"all capabilities": {"kind: Pod\nspec: {containers: [{name: a, image: app, securityContext: {capabilities: {add: [ALL]}}}]}\n", "ALL"},
		"too large":        {"#" + strings.Repeat("x", maxManifest), "larger than the limit"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Generate(t.Context(), []byte(tc.manifest), Options{Lookup: lookup})
			if !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error: %v", err)
			}
		})
	}
}
