package podpolicy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"go.yaml.in/yaml/v3"
)

// maxManifest bounds a manifest in bytes.
const maxManifest = 1 << 20

// object is a Kubernetes object, as deep as it takes to find a pod in it.
type object struct {
	Kind string    `yaml:"kind"`
	Spec yaml.Node `yaml:"spec"`
}

// podSpec is the part of a pod that decides what runs in it.
type podSpec struct {
	InitContainers        []container      `yaml:"initContainers"`
	Containers            []container      `yaml:"containers"`
	Volumes               []volume         `yaml:"volumes"`
	RestartPolicy         string           `yaml:"restartPolicy"`
	ShareProcessNamespace bool             `yaml:"shareProcessNamespace"`
	SecurityContext       *securityContext `yaml:"securityContext"`
	Rest                  map[string]any   `yaml:",inline"`
}

// harmless are a pod's fields that change nothing that a policy binds.
const harmless = `activeDeadlineSeconds affinity automountServiceAccountToken dnsConfig dnsPolicy enableServiceLinks hostAliases hostname hostUsers
	imagePullSecrets nodeName nodeSelector os overhead preemptionPolicy priority priorityClassName readinessGates resources
	runtimeClassName schedulerName schedulingGates serviceAccount serviceAccountName setHostnameAsFQDN subdomain
	terminationGracePeriodSeconds tolerations topologySpreadConstraints`

type container struct {
	Name            string           `yaml:"name"`
	Image           string           `yaml:"image"`
	Command         []string         `yaml:"command"`
	Args            []string         `yaml:"args"`
	WorkingDir      string           `yaml:"workingDir"`
	Env             []envVar         `yaml:"env"`
	EnvFrom         []any            `yaml:"envFrom"`
	VolumeMounts    []volumeMount    `yaml:"volumeMounts"`
	VolumeDevices   []volumeDevice   `yaml:"volumeDevices"`
	LivenessProbe   *probe           `yaml:"livenessProbe"`
	ReadinessProbe  *probe           `yaml:"readinessProbe"`
	StartupProbe    *probe           `yaml:"startupProbe"`
	Lifecycle       *lifecycle       `yaml:"lifecycle"`
	SecurityContext *securityContext `yaml:"securityContext"`
	RestartPolicy   string           `yaml:"restartPolicy"`
	Stdin           bool             `yaml:"stdin"`
	TerminationPath string           `yaml:"terminationMessagePath"`
	Resources       resources        `yaml:"resources"`

	// What changes nothing that a policy binds.
	Ports            any `yaml:"ports"`
	ResizePolicy     any `yaml:"resizePolicy"`
	StdinOnce        any `yaml:"stdinOnce"`
	TTY              any `yaml:"tty"`
	ImagePullPolicy  any `yaml:"imagePullPolicy"`
	TerminationKind  any `yaml:"terminationMessagePolicy"`
	RestartPolicyFor any `yaml:"restartPolicyRules"`
}

type envVar struct {
	Name      string `yaml:"name"`
	Value     string `yaml:"value"`
	ValueFrom *struct {
		FieldRef *struct {
			APIVersion string `yaml:"apiVersion"`
			FieldPath  string `yaml:"fieldPath"`
		} `yaml:"fieldRef"`
		ResourceFieldRef any `yaml:"resourceFieldRef"`
		SecretKeyRef     any `yaml:"secretKeyRef"`
		ConfigMapKeyRef  any `yaml:"configMapKeyRef"`
		FileKeyRef       any `yaml:"fileKeyRef"`
	} `yaml:"valueFrom"`
}

type volumeMount struct {
	Name              string `yaml:"name"`
	MountPath         string `yaml:"mountPath"`
	SubPath           string `yaml:"subPath"`
	SubPathExpr       string `yaml:"subPathExpr"`
	ReadOnly          bool   `yaml:"readOnly"`
	RecursiveReadOnly string `yaml:"recursiveReadOnly"`
	MountPropagation  string `yaml:"mountPropagation"`
}

// volumeDevice is a volume that a container has as a block device.
type volumeDevice struct {
	Name       string `yaml:"name"`
	DevicePath string `yaml:"devicePath"`
}

// resources are what a container may use. All but devices is the host's business: it can starve a pod anyway.
type resources struct {
	Limits map[string]any `yaml:"limits"`
	Rest   map[string]any `yaml:",inline"`
}

// volume has one field for each kind that a policy can bind. A block device's kind does not matter: its content is the host's in any case.
type volume struct {
	Name        string `yaml:"name"`
	EmptyDir    any    `yaml:"emptyDir"`
	ConfigMap   any    `yaml:"configMap"`
	Secret      any    `yaml:"secret"`
	DownwardAPI any    `yaml:"downwardAPI"`
	Projected   *struct {
		Sources []struct {
			Secret any            `yaml:"secret"`
			Rest   map[string]any `yaml:",inline"`
		} `yaml:"sources"`
		DefaultMode any `yaml:"defaultMode"`
	} `yaml:"projected"`
	Image *struct {
		Reference  string `yaml:"reference"`
		PullPolicy string `yaml:"pullPolicy"`
	} `yaml:"image"`

	Rest map[string]any `yaml:",inline"`
}

type probe struct {
	Exec *struct {
		Command []string `yaml:"command"`
	} `yaml:"exec"`
	Rest map[string]any `yaml:",inline"`
}

type lifecycle struct {
	PostStart  *probe `yaml:"postStart"`
	PreStop    *probe `yaml:"preStop"`
	StopSignal string `yaml:"stopSignal"`
}

// securityContext is a pod's and a container's together.
type securityContext struct {
	RunAsUser          *int64   `yaml:"runAsUser"`
	RunAsGroup         *int64   `yaml:"runAsGroup"`
	SupplementalGroups []uint32 `yaml:"supplementalGroups"`
	FSGroup            *int64   `yaml:"fsGroup"`
	Privileged         bool     `yaml:"privileged"`
	Sysctls            []struct {
		Name  string `yaml:"name"`
		Value string `yaml:"value"`
	} `yaml:"sysctls"`
	Capabilities *struct {
		Add  []string `yaml:"add"`
		Drop []string `yaml:"drop"`
	} `yaml:"capabilities"`

	// These narrow what a program may do, which the guest leaves to the host.
	Rest map[string]any `yaml:",inline"`
}

// readPod finds the one pod of a manifest. InvalidArgument: there is none, or several, or it cannot be read.
func readPod(raw []byte) (*podSpec, error) {
	if len(raw) > maxManifest {
		return nil, fmt.Errorf("manifest of %d bytes is larger than the limit of %d: %w", len(raw), maxManifest, errdefs.ErrInvalidArgument)
	}
	var found *podSpec
	dec := yaml.NewDecoder(bytes.NewReader(raw))
	for {
		var o object
		err := dec.Decode(&o)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("manifest: %w: %w", err, errdefs.ErrInvalidArgument)
		}
		spec, err := o.pod()
		if err != nil {
			return nil, err
		}
		if spec != nil && found != nil {
			return nil, fmt.Errorf("manifest has more than one pod: a policy is for one: %w", errdefs.ErrInvalidArgument)
		}
		if spec != nil {
			found = spec
		}
	}
	if found == nil {
		return nil, fmt.Errorf("manifest has no Pod and nothing that makes pods: %w", errdefs.ErrInvalidArgument)
	}
	return found, nil
}

// paths are where the objects that make pods have them.
var paths = map[string][]string{
	"Pod": {}, "Deployment": {"template", "spec"}, "StatefulSet": {"template", "spec"}, "DaemonSet": {"template", "spec"},
	"ReplicaSet": {"template", "spec"}, "ReplicationController": {"template", "spec"}, "Job": {"template", "spec"},
	"CronJob": {"jobTemplate", "spec", "template", "spec"},
}

// pod returns the pod of an object, nil for objects of other kinds.
func (o *object) pod() (*podSpec, error) {
	steps, has := paths[o.Kind]
	if !has {
		return nil, nil
	}
	node := &o.Spec
	for _, step := range steps {
		if node = child(node, step); node == nil {
			return nil, fmt.Errorf("%s has no spec.%s: %w", o.Kind, step, errdefs.ErrInvalidArgument)
		}
	}
	text, err := yaml.Marshal(node)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", o.Kind, err, errdefs.ErrInvalidArgument)
	}
	spec := &podSpec{}
	dec := yaml.NewDecoder(bytes.NewReader(text))
	dec.KnownFields(true) // of containers and their parts
	if err := dec.Decode(spec); err != nil {
		return nil, fmt.Errorf("%s: a policy cannot bind all of it: %w: %w", o.Kind, err, errdefs.ErrInvalidArgument)
	}
	for field, value := range spec.Rest {
		if !slices.Contains(strings.Fields(harmless), field) && value != false {
			return nil, fmt.Errorf("%s: a policy cannot bind the field %s: %w", o.Kind, field, errdefs.ErrInvalidArgument)
		}
	}
	return spec, nil
}

func child(node *yaml.Node, name string) *yaml.Node {
	for i := 0; i+1 < len(node.Content); i += 2 {
		if node.Content[i].Value == name {
			return node.Content[i+1]
		}
	}
	return nil
}
