package podpolicy

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// variables are what a manifest says of a container's environment.
type variables struct {
	values map[string]string
	// patterns are for values that are known when the pod runs only.
	patterns map[string]string
}

// The values of pod fields.
const (
	anyName    = `^[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?$`
	anyAddress = `^[0-9a-fA-F.:]{3,45}$`
	anyList    = `^[0-9a-fA-F.:]{3,45}(,[0-9a-fA-F.:]{3,45})*$`
	anyNumber  = `^[0-9]+$`
	anyValue   = `^`
)

var fields = map[string]string{
	"metadata.name": anyName, "metadata.namespace": anyName, "metadata.uid": anyName, "spec.nodeName": anyName, "spec.serviceAccountName": anyName,
	"status.hostIP": anyAddress, "status.podIP": anyAddress, "status.hostIPs": anyList, "status.podIPs": anyList,
}

func newVariables(c *container, o Options) (*variables, error) {
	v := &variables{values: map[string]string{}, patterns: map[string]string{}}
	for _, name := range o.AnyValue {
		v.patterns[name] = anyValue
	}
	if len(c.EnvFrom) > 0 {
		return nil, errors.New("envFrom cannot be bound: list the variables, or name them with --any-value and keep envFrom out of the manifest")
	}
	for _, e := range c.Env {
		if slices.Contains(o.AnyValue, e.Name) {
			delete(v.values, e.Name)
			continue
		}
		if e.ValueFrom == nil {
			value, err := v.expand(e.Value)
			if err != nil {
				return nil, fmt.Errorf("variable %s: %w", e.Name, err)
			}
			delete(v.patterns, e.Name)
			v.values[e.Name] = value
			continue
		}
		from := e.ValueFrom
		switch {
		case from.FieldRef != nil && fields[from.FieldRef.FieldPath] != "":
			v.patterns[e.Name] = fields[from.FieldRef.FieldPath]
		case from.ResourceFieldRef != nil:
			v.patterns[e.Name] = anyNumber
		default:
			return nil, fmt.Errorf("the value of variable %s is not known here: allow the host to choose it with --any-value %s, or let the guest get it from the key broker (cofferctl secret seal)", e.Name, e.Name)
		}
		delete(v.values, e.Name)
	}
	return v, nil
}

var reference = regexp.MustCompile(`\$\$|\$\(([-._a-zA-Z][-._a-zA-Z0-9]*)\)`)

// expand puts variables in as kubelet does: $(NAME) is the value where there is one, and $$ is one dollar sign.
func (v *variables) expand(text string) (string, error) {
	var fault error
	out := reference.ReplaceAllStringFunc(text, func(match string) string {
		if match == "$$" {
			return "$"
		}
		name := match[2 : len(match)-1]
		if value, ok := v.values[name]; ok {
			return value
		}
		if _, later := v.patterns[name]; later || strings.Contains(name, "_SERVICE_") || strings.Contains(name, "_PORT") {
			fault = fmt.Errorf("$(%s) is known when the pod runs only, which cannot be bound", name)
		}
		return match
	})
	return out, fault
}

// arguments are what the process gets, by the rules of Kubernetes: a command replaces the image's entry point and its command, arguments
// replace its command.
func arguments(c *container, config *ocispec.ImageConfig, v *variables) ([]string, error) {
	entry, rest := config.Entrypoint, config.Cmd
	var stated []string
	switch {
	case len(c.Command) > 0:
		entry, rest, stated = nil, nil, append(list(c.Command), c.Args...)
	case len(c.Args) > 0:
		rest, stated = nil, c.Args
	}
	out := append(list(entry), rest...)
	for _, text := range stated {
		word, err := v.expand(text)
		if err != nil {
			return nil, fmt.Errorf("argument %q: %w", text, err)
		}
		out = append(out, word)
	}
	if len(out) == 0 {
		return nil, errors.New("neither the manifest nor the image says what to run")
	}
	return out, nil
}
