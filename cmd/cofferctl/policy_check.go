package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/urfave/cli/v2"

	"github.com/coffer-project/coffer/proto/agentpolicy"
	"github.com/coffer-project/coffer/proto/initdata"
)

// maxRequests bounds a recording in bytes.
const maxRequests = 64 << 20

// recorded is one request of a recording, in the form of Kata's tests and of its agent's log.
type recorded struct {
	Description string         `json:"description"`
	Kind        string         `json:"kind"`
	Request     map[string]any `json:"request"`
	Allowed     *bool          `json:"allowed"`
}

func checkPolicy(c *cli.Context) error {
	policy, err := openPolicy(c.String("policy"))
	if err != nil {
		return err
	}
	raw, err := readArgument(c, maxRequests)
	if err != nil {
		return err
	}
	requests, err := readRequests(raw)
	if err != nil {
		return err
	}
	var printed io.Writer
	if c.Bool("print") {
		printed = c.App.Writer
	}
	wrong := 0
	for _, r := range requests {
		d, err := policy.Explain(c.Context, r.Kind, r.Request, commits(r.Request), printed)
		fmt.Fprintln(c.App.Writer, verdict(r, d, err))
		if d.Allowed != (r.Allowed == nil || *r.Allowed) {
			wrong++
		}
	}
	if wrong > 0 {
		return fmt.Errorf("%d of %d requests are decided otherwise than they should: %w", wrong, len(requests), errdefs.ErrPermissionDenied)
	}
	return nil
}

// commits tells whether the guest would remember what it allows: at the first look at a container it does not.
func commits(request map[string]any) bool {
	facts, _ := request["coffer"].(map[string]any)
	return facts["stage"] != agentpolicy.StageRequest
}

func verdict(r recorded, d agentpolicy.Decision, err error) string {
	what := r.Kind
	if r.Description != "" {
		what += " (" + r.Description + ")"
	}
	switch {
	case err != nil:
		return fmt.Sprintf("denied   %s: %s", what, err)
	case d.Allowed:
		return "allowed  " + what
	case !d.Known:
		return fmt.Sprintf("denied   %s: the policy has no rule %s", what, r.Kind)
	case len(d.Reasons) > 0:
		return fmt.Sprintf("denied   %s: %s", what, strings.Join(d.Reasons, "; "))
	default:
		return fmt.Sprintf("denied   %s: the rule does not hold (--print shows what it prints)", what)
	}
}

// openPolicy reads a policy, or the document that brings it.
func openPolicy(file string) (*agentpolicy.Policy, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read policy: %w", err)
	}
	text := string(raw)
	if unwrapped, err := initdata.Unwrap(raw); err == nil {
		doc, err := initdata.Parse(unwrapped)
		if err != nil {
			return nil, err
		}
		var ok bool
		if text, ok = doc.Data[initdata.KeyPolicy]; !ok {
			return nil, fmt.Errorf("document %s brings no %s: %w", file, initdata.KeyPolicy, errdefs.ErrNotFound)
		}
	}
	return agentpolicy.Compile(text)
}

// readRequests reads objects one after the other, or in a list.
func readRequests(raw []byte) ([]recorded, error) {
	var out []recorded
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	if trimmed := bytes.TrimSpace(raw); len(trimmed) > 0 && trimmed[0] == '[' {
		if err := dec.Decode(&out); err != nil {
			return nil, fmt.Errorf("read requests: %w: %w", err, errdefs.ErrInvalidArgument)
		}
	}
	for {
		var one recorded
		err := dec.Decode(&one)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read requests: %w: %w", err, errdefs.ErrInvalidArgument)
		}
		out = append(out, one)
	}
	for i, r := range out {
		if r.Kind == "" || r.Request == nil {
			return nil, fmt.Errorf("request %d of the recording has no kind or no request: %w", i, errdefs.ErrInvalidArgument)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("recording has no requests: %w", errdefs.ErrInvalidArgument)
	}
	return out, nil
}
