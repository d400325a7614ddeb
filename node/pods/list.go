package pods

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/shim/sandbox"
	"github.com/coffer-project/coffer/shim/status"
)

// answerLimit bounds the question to one shim. Reports need nothing of the guest.
const answerLimit = 3 * time.Second

// dirPattern is how shims name their state directories.
var dirPattern = regexp.MustCompile(`^[0-9a-f]{16}$`)

// Pod is one state directory and what is behind it.
type Pod struct {
	// Record is what the shim wrote when it made the pod; its fields are empty when it was killed before.
	sandbox.Record
	StateDir string `json:"state_dir"`
	// Orphan is set when no shim is there any more: what the pod held is not released.
	Orphan bool `json:"orphan,omitempty"`
	// Report is the shim's, nil when it did not answer; Problem says why.
	Report  *sandbox.Report `json:"report,omitempty"`
	Problem string          `json:"problem,omitempty"`
}

// Name is how people call the pod: Kubernetes' name, or the id of a task without one.
func (p *Pod) Name() string {
	if p.PodName == "" {
		return p.ID
	}
	return p.PodNamespace + "/" + p.PodName
}

// State is the pod's, "orphan" or "unknown".
func (p *Pod) State() string {
	switch {
	case p.Orphan:
		return "orphan"
	case p.Report == nil:
		return "unknown"
	}
	return p.Report.State
}

// List reads the state directories below each root and asks their shims, all at once. Pods that end meanwhile are left
// out; a root that does not exist holds none.
func List(ctx context.Context, roots ...string) ([]Pod, error) {
	var found []Pod
	for _, root := range roots {
		entries, err := os.ReadDir(root)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list pods: %w (cofferctl must run as root)", err)
		}
		for _, entry := range entries {
			if entry.IsDir() && dirPattern.MatchString(entry.Name()) {
				found = append(found, Pod{StateDir: filepath.Join(root, entry.Name())})
			}
		}
	}
	var wg sync.WaitGroup
	there := make([]bool, len(found))
	for i := range found {
		wg.Go(func() { there[i] = found[i].look(ctx) })
	}
	wg.Wait()
	pods := make([]Pod, 0, len(found))
	for i := range found {
		if there[i] {
			pods = append(pods, found[i])
		}
	}
	return pods, nil
}

// look fills in what is known of a pod and reports whether it is still there.
func (p *Pod) look(ctx context.Context) bool {
	record, err := sandbox.ReadRecord(p.StateDir)
	if err == nil {
		p.Record = *record
	} else if !errdefs.IsNotFound(err) {
		p.Problem = err.Error()
	}
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	var report sandbox.Report
	err = status.Report(ctx, p.StateDir, &report)
	if err == nil {
		p.Report = &report
		return true
	}
	p.Problem = err.Error()
	p.Orphan, err = sandbox.Orphaned(p.StateDir)
	if err != nil {
		p.Problem = err.Error()
	}
	return !errdefs.IsNotFound(err)
}

// Find returns the pod that a user means: by its name, namespace/name, or the beginning of its sandbox id. It fails with
// errdefs.ErrNotFound, and with errdefs.ErrInvalidArgument when several fit.
func Find(pods []Pod, wanted string) (*Pod, error) {
	var fits []*Pod
	for i := range pods {
		p := &pods[i]
		if p.ID == wanted || p.Name() == wanted {
			return p, nil
		}
		if p.PodName == wanted || wanted != "" && strings.HasPrefix(p.ID, wanted) {
			fits = append(fits, p)
		}
	}
	switch len(fits) {
	case 1:
		return fits[0], nil
	case 0:
		return nil, fmt.Errorf("no pod %q on this node, see cofferctl ps: %w", wanted, errdefs.ErrNotFound)
	}
	return nil, fmt.Errorf("%d pods are called %q, give more of the sandbox id: %w", len(fits), wanted, errdefs.ErrInvalidArgument)
}
