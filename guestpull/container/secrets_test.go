package container

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"

	"github.com/coffer-project/coffer/integration/require"
	agentpb "github.com/coffer-project/coffer/proto/agent"
	"github.com/coffer-project/coffer/proto/oci"
)

// fakeSecrets has secrets by their sealed text.
type fakeSecrets struct {
	values map[string]string
	asked  []string
}

func (f *fakeSecrets) Unseal(_ context.Context, text string) ([]byte, error) {
	f.asked = append(f.asked, text)
	value, ok := f.values[text]
	if !ok {
		return nil, fmt.Errorf("key broker refused resource kbs:///default/secret/db: policy denied: %w", errdefs.ErrPermissionDenied)
	}
	return []byte(value), nil
}

const (
	sealedText = "sealed.a.b.c"
	hidden     = "correct horse = battery\nstaple"
)

// heard returns a context whose log, with all details, goes to the buffer.
func heard(t *testing.T) (context.Context, *bytes.Buffer) {
	t.Helper()
	var out bytes.Buffer
	logger := logrus.New()
	logger.SetLevel(logrus.TraceLevel)
	logger.SetOutput(&out)
	return log.WithLogger(t.Context(), logrus.NewEntry(logger)), &out
}

func TestSealedVariables(t *testing.T) {
	require.Root(t)
	f := newFakes(t)
	f.secrets.values[sealedText] = hidden
	f.images.config.Env = []string{"OF_IMAGE=" + sealedText}
	ctx, out := heard(t)
	var env []string
	f.runtime.onCall = func(call string) {
		if call != "create" {
			return
		}
		var written specs.Spec
		raw, err := os.ReadFile(filepath.Join(f.Base, "c1", "config.json"))
		if err = errors.Join(err, json.Unmarshal(raw, &written)); err != nil {
			t.Error(err)
			return
		}
		env = written.Process.Env
	}
	req := f.request("c1")
	req.OCI.Process.Env = []string{"PLAIN=sealed", "PASSWORD=" + sealedText, "NOT=a." + sealedText}
	must(t, f.Create(ctx, req))
	if want := []string{"OF_IMAGE=" + hidden, "PLAIN=sealed", "PASSWORD=" + hidden, "NOT=a." + sealedText}; !slices.Equal(env, want) {
		t.Errorf("the runtime was given %q", env)
	}
	// The policy judges what was asked for.
	for _, facts := range f.policy.told {
		if text := fmt.Sprintf("%+v", facts); strings.Contains(text, "battery") {
			t.Error("the policy was told a secret")
		}
	}
	must(t, f.Start(ctx, "c1"))
	exec := func(id, value string) error {
		return f.Exec(ctx, &agentpb.ExecProcessRequest{ContainerId: "c1", ExecId: id, Process: &oci.Process{Args: []string{"x"}, Env: []string{"PASSWORD=" + value}}})
	}
	must(t, exec("e1", sealedText))
	if !slices.Contains(f.runtime.process.Env, "PASSWORD="+hidden) || !slices.Contains(f.runtime.process.Env, "OF_IMAGE="+hidden) {
		t.Errorf("the exec was given %q", f.runtime.process.Env)
	}
	f.secrets.values["sealed.d.e.f"] = "others"
	if err := exec("e2", "sealed.d.e.f"); !errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), `"PASSWORD"`) {
		t.Errorf("exec with a secret that is not the container's: %v", err)
	}
	if slices.Contains(f.secrets.asked, "sealed.d.e.f") {
		t.Error("an exec fetched a secret")
	}
	parts, err := f.ProcessOrigin("c1")
	if err != nil || strings.Contains(fmt.Sprintf("%+v", parts), "battery") {
		t.Errorf("what is told of the process holds a secret, or is not there: %v", err)
	}
	if log := out.String(); !strings.Contains(log, "sealed secrets opened") || strings.Contains(log, "battery") {
		t.Errorf("log: %s", log)
	}
}

func TestSealedVariableFails(t *testing.T) {
	require.Root(t)
	for name, tc := range map[string]struct {
		value string // empty: the broker refuses
		env   []string
		want  error
		words []string
	}{
		"refused":          {"", []string{"PASSWORD=" + sealedText}, errdefs.ErrPermissionDenied, []string{"container c1", `variable "PASSWORD"`, "policy denied"}},
		"zero byte":        {hidden + "\x00", []string{"PASSWORD=" + sealedText}, errdefs.ErrInvalidArgument, []string{`variable "PASSWORD"`, "not text"}},
		"not UTF-8":        {hidden + "\xff", []string{"PASSWORD=" + sealedText}, errdefs.ErrInvalidArgument, []string{`variable "PASSWORD"`, "not text"}},
		"long":             {strings.Repeat(hidden, 10000), []string{"PASSWORD=" + sealedText}, errdefs.ErrInvalidArgument, []string{`variable "PASSWORD"`, "more than a variable can hold"}},
		"just fits":        {strings.Repeat(hidden, 4000), []string{"PASSWORD=" + sealedText}, nil, nil},
		"too many of them": {hidden, many(maxSecrets + 1), errdefs.ErrInvalidArgument, []string{"more than 64 sealed secrets"}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakes(t)
			if tc.value != "" {
				for _, entry := range tc.env {
					_, text, _ := strings.Cut(entry, "=")
					f.secrets.values[text] = tc.value
				}
			}
			ctx, out := heard(t)
			req := f.request("c1")
			req.OCI.Process.Env = tc.env
			err := f.Create(ctx, req)
			if !errors.Is(err, tc.want) {
				t.Fatal(err)
			}
			if strings.Contains(fmt.Sprint(err), "battery") || strings.Contains(out.String(), "battery") {
				t.Errorf("a secret is told: %v\n%s", err, out)
			}
			if err == nil {
				return
			}
			for _, word := range tc.words {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("%q is not in %v", word, err)
				}
			}
			if f.runtime.did("create") {
				t.Error("the container was made")
			}
			f.wantNothing(t, "c1")
		})
	}
}

// TestRefusedIsNotUnsealed: a container that the policy refuses gets no secret fetched.
func TestRefusedIsNotUnsealed(t *testing.T) {
	require.Root(t)
	f := newFakes(t)
	f.secrets.values[sealedText] = hidden
	f.policy.refuse = "container"
	req := f.request("c1")
	req.OCI.Process.Env = []string{"PASSWORD=" + sealedText}
	if err := f.Create(t.Context(), req); !errdefs.IsPermissionDenied(err) || len(f.secrets.asked) != 0 {
		t.Errorf("asked for %q: %v", f.secrets.asked, err)
	}
}

// many are variables with different sealed secrets.
func many(n int) []string {
	var env []string
	for i := range n {
		env = append(env, fmt.Sprintf("V%d=%s%d", i, sealedText, i))
	}
	return env
}
