package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coffer-project/coffer/integration/harness"
	"github.com/coffer-project/coffer/integration/program"
	"github.com/coffer-project/coffer/proto/initdata"
	"github.com/coffer-project/coffer/proto/kbs"
)

// changedHandler is the runtime handler whose guest image has a byte changed.
const changedHandler = "coffer-changed"

// Where refusals are decided.
const (
	byInterface = "in the guest, by the interface policy in its measured document"
	byImages    = "in the guest, by the image policy in its measured document"
	byGuest     = "in the guest, which without a TEE has no evidence to send"
	byBroker    = "at the key broker, by the owner's reference values"
	byEvidence  = "at the key broker, which takes no evidence that proves nothing"
)

// refusal is something that a host tried, and what it was told.
type refusal struct {
	Case      string `json:"case"`
	Tried     string `json:"tried"`
	DecidedBy string `json:"decided_by"`
	// Message is the error of CRI: what kubectl describe pod shows in the pod's events.
	Message string `json:"message"`
	// Refused is true if there was a refusal and it says what it must.
	Refused bool `json:"refused"`
}

// denials gathers refusals.
type denials struct {
	*demo
	reference string
	list      []refusal
	faults    []error
}

// showRefusals has the host go astray in every way that a user should have seen, once the same pod has run as its owner wants it.
func (d *demo) showRefusals(ctx context.Context, out string) error {
	registry := d.node.HTTP
	n := &denials{demo: d, reference: registry.Host + "/" + repository + ":deny"}
	unsigned := registry.Host + "/" + repository + ":unsigned"
	program.Say("owner: encrypting two images, and signing one of them")
	for key, reference := range map[string]string{"deny": n.reference, "unsigned": unsigned} {
		if err := d.owner.encrypt(ctx, registry, d.layout.Dir, reference, "kbs:///demo/image-key/"+key); err != nil {
			return err
		}
	}
	if err := d.owner.sign(ctx, registry, n.reference); err != nil {
		return err
	}
	for _, step := range []func(context.Context) error{
		n.policyCases, n.changedGuest,
		func(ctx context.Context) error { return n.unsignedImage(ctx, unsigned) },
		func(ctx context.Context) error {
			return n.withoutTEE(ctx, "no evidence", "run it on a machine without a TEE", nil, byGuest, "has no TEE", `attestation.tees = ["sample"]`)
		},
		func(ctx context.Context) error {
			return n.withoutTEE(ctx, "sample evidence", "run it there, under initdata that allows sample evidence", []string{string(kbs.TEESample)}, byEvidence, "refused", "sample")
		},
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	path, err := program.WriteJSON(out, "deny.json", n.list)
	if err != nil {
		return err
	}
	n.print(os.Stdout)
	fmt.Println("report:", path)
	return errors.Join(n.faults...)
}

// add records what became of a case.
func (n *denials) add(name, tried, by string, err error, want ...string) {
	r := refusal{Case: name, Tried: tried, DecidedBy: by, Refused: err != nil}
	if err != nil {
		r.Message = err.Error()
		if answer, ok := errors.AsType[interface {
			error
			GRPCStatus() *status.Status
		}](err); ok {
			r.Message = answer.GRPCStatus().Message()
		}
	}
	for _, words := range want {
		r.Refused = r.Refused && strings.Contains(r.Message, words)
	}
	if !r.Refused {
		n.faults = append(n.faults, fmt.Errorf("%s: want a refusal that says %q, got %q", name, want, r.Message))
	}
	n.list = append(n.list, r)
}

// in runs a pod with the document for containers, and lets use have it. The handler's name is that of the guest image.
func (n *denials) in(ctx context.Context, handler string, wanted pod, use func(*harness.Pod) error) (retErr error) {
	wanted.registry = n.node.HTTP
	annotations, err := n.owner.document(ctx, wanted)
	if err != nil {
		return err
	}
	pod, err := n.node.CRI.RunPod(ctx, handler, n.podConfig(wanted.name, annotations))
	if err != nil {
		return err
	}
	defer func() { retErr = errors.Join(retErr, pod.Remove(context.WithoutCancel(ctx))) }()
	return use(pod)
}

// start tries to run a container and returns it, or the refusal.
func (n *denials) start(ctx context.Context, pod *harness.Pod, name, reference string, command ...string) (_ *harness.Container, refused, fault error) {
	if err := pod.Pull(ctx, reference); err != nil {
		return nil, nil, err
	}
	c, err := pod.Create(ctx, name, reference, command...)
	if err != nil {
		return nil, nil, err
	}
	if refused = c.Start(ctx); refused != nil {
		_, fault = n.node.CRI.Runtime.RemoveContainer(ctx, &runtime.RemoveContainerRequest{ContainerId: c.ID})
	}
	return c, refused, fault
}

// server is what the owner wants to run in all of these pods.
var server = []string{"/" + markerDir + "/busybox", "sleep", "1000"}

func (n *denials) wanted(name, reference string, tees ...string) pod {
	return pod{name: name, tees: tees, containers: []container{{"app", reference, server}}}
}

// policyCases are about what runs in a guest that may have the key.
func (n *denials) policyCases(ctx context.Context) error {
	program.Say("host: the owner's pod, with another image, other arguments, a shell")
	return n.in(ctx, handler, n.wanted("deny-policy", n.reference, initdata.ForgedSNP), func(pod *harness.Pod) error {
		_, refused, err := n.start(ctx, pod, "app", n.node.HTTP.Host+"/"+plainTag, server...)
		if err != nil {
			return err
		}
		n.add("wrong image", "run another image than the owner's manifest names", byInterface, refused, "blocked by policy", "image")
		shell := []string{"/" + markerDir + "/busybox", "cat", "/" + markerDir + "/marker"}
		if _, refused, err = n.start(ctx, pod, "app", n.reference, shell...); err != nil {
			return err
		}
		n.add("changed arguments", "run the owner's image with another command", byInterface, refused, "blocked by policy", "command and arguments are others")
		c, refused, err := n.start(ctx, pod, "app", n.reference, server...)
		if err = errors.Join(err, refused); err != nil {
			return fmt.Errorf("the owner's own pod does not run, so refusals show nothing: %w", err)
		}
		_, refused = c.ExecSync(ctx, shell...)
		n.add("exec", "run a program in the container (kubectl exec)", byInterface, refused, "blocked by policy")
		return nil
	})
}

// one is a pod whose only container must be refused.
func (n *denials) one(ctx context.Context, handler string, wanted pod, name, tried, by string, want ...string) error {
	program.Say("host: %s", tried)
	return n.in(ctx, handler, wanted, func(pod *harness.Pod) error {
		_, refused, err := n.start(ctx, pod, "app", wanted.containers[0].Image, server...)
		n.add(name, tried, by, refused, want...)
		return err
	})
}

func (n *denials) changedGuest(ctx context.Context) error {
	return n.one(ctx, changedHandler, n.wanted("deny-changed", n.reference, initdata.ForgedSNP), "changed guest",
		"launch a guest image in which one byte of the initrd is another", byBroker, "key broker", "policy denied", "cpu0 was appraised as", "warning", "executables of cpu0 is 33")
}

func (n *denials) unsignedImage(ctx context.Context, reference string) error {
	return n.one(ctx, handler, n.wanted("deny-unsigned", reference, initdata.ForgedSNP), "missing signature",
		"run an image that the owner has not signed", byImages, "image security policy", "has no signature that counts")
}

func (n *denials) withoutTEE(ctx context.Context, name, tried string, tees []string, by string, want ...string) error {
	return n.one(ctx, handler, n.wanted("deny-"+strings.ReplaceAll(name, " ", "-"), n.reference, tees...), name, tried, by, want...)
}

func (n *denials) print(out io.Writer) {
	for _, r := range n.list {
		verdict := "refused"
		if !r.Refused {
			verdict = "NOT REFUSED AS IT SHOULD BE"
		}
		fmt.Fprintf(out, "\n%s: %s\n", r.Case, verdict)
		for _, line := range [][2]string{{"tried", r.Tried}, {"decided", r.DecidedBy}, {"the user reads", r.Message}} {
			fmt.Fprintf(out, "  %-14s  %s\n", line[0], fold(line[1], 100, strings.Repeat(" ", 18)))
		}
	}
	fmt.Fprintln(out, "\nThe texts are CRI's errors, which kubelet writes into the pod's events (kubectl describe pod).")
}

// fold breaks text at blanks into lines of about width characters, the further ones indented.
func fold(text string, width int, indent string) string {
	var out strings.Builder
	used := 0
	for i, word := range strings.Fields(text) {
		switch {
		case i == 0:
		case used+len(word) >= width:
			out.WriteString("\n" + indent)
			used = 0
		default:
			out.WriteByte(' ')
			used++
		}
		out.WriteString(word)
		used += len(word)
	}
	return out.String()
}
