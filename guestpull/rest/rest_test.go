package rest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
	"google.golang.org/protobuf/proto"

	"github.com/coffer-project/coffer/proto/cdh"
)

// broker is a key broker with one resource.
type broker struct {
	mu    sync.Mutex
	asked []string
	fail  error
	block chan struct{} // when set, Resource waits for its end
	began chan struct{} // gets one for each Resource
}

const hidden = "correct horse battery staple"

func (b *broker) Resource(ctx context.Context, uri string) ([]byte, error) {
	b.mu.Lock()
	b.asked = append(b.asked, uri)
	b.mu.Unlock()
	if b.block != nil {
		b.began <- struct{}{}
		select {
		case <-b.block:
		case <-ctx.Done():
		}
	}
	return []byte(hidden), b.fail
}

func (b *broker) Token(context.Context) (string, []byte, error) {
	return "a.b.c", []byte(hidden), b.fail
}

func (b *broker) Evidence(_ context.Context, data []byte) (json.RawMessage, error) {
	return json.Marshal(map[string]string{"data": string(data)})
}

// rules allow requests, and refuse one resource.
type rules struct{}

func (rules) Allow(_ context.Context, _ string, request proto.Message) error {
	if r, ok := request.(*cdh.GetResourceRequest); ok && r.GetResourcePath() == "kbs:///default/secret/other" {
		return fmt.Errorf("GetResource is blocked by policy: another's: %w", errdefs.ErrPermissionDenied)
	}
	return nil
}

// start serves until the test ends.
func start(t *testing.T, b *broker, serve ...string) (url string, logged *bytes.Buffer) {
	t.Helper()
	l, err := Listen(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	logger := logrus.New()
	logger.SetLevel(logrus.TraceLevel)
	logger.SetOutput(&out)
	ctx, cancel := context.WithCancel(log.WithLogger(context.Background(), logrus.NewEntry(logger)))
	done := make(chan error, 1)
	go func() { done <- New(b, rules{}, serve).Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if strings.Contains(out.String(), hidden) {
			t.Error("the log shows a secret")
		}
	})
	return "http://" + l.Addr().String(), &out
}

func get(t *testing.T, method, url, host string) (int, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if host != "" {
		r.Host = host
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, string(body)
}

func TestRequests(t *testing.T) {
	all, _ := start(t, &broker{}, "resource", "token", "evidence")
	none, _ := start(t, &broker{})
	missing, _ := start(t, &broker{fail: errdefs.ErrNotFound}, "resource", "token")
	down, _ := start(t, &broker{fail: errdefs.ErrUnavailable}, "resource", "token")
	for name, tc := range map[string]struct {
		url, path string
		status    int
		body      string
	}{
		"resource":           {all, "/cdh/resource/default/secret/db", 200, hidden},
		"token":              {all, "/aa/token?token_type=kbs", 200, `{"tee_keypair":"` + hidden + `","token":"a.b.c"}`},
		"evidence":           {all, "/aa/evidence?runtime_data=abc", 200, `{"data":"abc"}`},
		"evidence in base64": {all, "/aa/evidence?runtime_data=YWJj&encoding=base64", 200, `{"data":"abc"}`},

		"policy":             {all, "/cdh/resource/default/secret/other", 403, "blocked by policy"},
		"two parts":          {all, "/cdh/resource/default/secret", 400, "repository/type/tag"},
		"a parent":           {all, "/cdh/resource/default/secret/%2e%2e", 400, "resource name"},
		"a query":            {all, "/cdh/resource/default/secret/db?x=1", 400, "query"},
		"another token":      {all, "/aa/token?token_type=coco_as", 400, "token_type=kbs"},
		"no kind of token":   {all, "/aa/token", 400, "token_type=kbs"},
		"much data":          {all, "/aa/evidence?runtime_data=" + strings.Repeat("a", 65), 400, "64 bytes"},
		"no data":            {all, "/aa/evidence", 400, "missing"},
		"not base64":         {all, "/aa/evidence?runtime_data=YWJj!&encoding=base64", 400, "base64url"},
		"another encoding":   {all, "/aa/evidence?runtime_data=YWJj&encoding=hex", 400, "encoding"},
		"senseless query":    {all, "/aa/evidence?runtime_data=%zz", 400, "query"},
		"another path":       {all, "/aa/aael", 404, "no such path"},
		"root":               {all, "/", 404, "no such path"},
		"resource not given": {none, "/cdh/resource/default/secret/db", 404, "rest.serve"},
		"token not given":    {none, "/aa/token?token_type=kbs", 404, "rest.serve"},
		"evidence not given": {none, "/aa/evidence?runtime_data=abc", 404, "rest.serve"},
		"no such resource":   {missing, "/cdh/resource/default/secret/db", 404, "not found"},
		"broker is down":     {down, "/aa/token?token_type=kbs", 503, "unavailable"},
	} {
		t.Run(name, func(t *testing.T) {
			status, body := get(t, http.MethodGet, tc.url+tc.path, "")
			if status != tc.status || !strings.Contains(body, tc.body) {
				t.Errorf("%d %s", status, body)
			}
		})
	}
	if status, _ := get(t, http.MethodPost, all+"/cdh/resource/default/secret/db", ""); status != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d", status)
	}
	if status, _ := get(t, http.MethodGet, all+"/cdh/resource/default/secret/db", "evil.example:8006"); status != http.StatusForbidden {
		t.Errorf("for another host: %d", status)
	}
}

// TestTurns: no more than so many requests reach the broker at a time.
func TestTurns(t *testing.T) {
	b := &broker{block: make(chan struct{}), began: make(chan struct{}, 2*maxRequests)}
	url, _ := start(t, b, "resource")
	var group sync.WaitGroup
	for range 2 * maxRequests {
		group.Go(func() {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+"/cdh/resource/default/secret/db", nil)
			if err != nil {
				t.Error(err)
				return
			}
			answer, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Error(err)
				return
			}
			_, _ = io.Copy(io.Discard, answer.Body)
			answer.Body.Close()
		})
	}
	for range maxRequests {
		<-b.began
	}
	b.mu.Lock()
	n := len(b.asked)
	b.mu.Unlock()
	if n != maxRequests {
		t.Errorf("%d requests at a time", n)
	}
	close(b.block)
	group.Wait()
	if len(b.asked) != 2*maxRequests {
		t.Errorf("%d requests in all", len(b.asked))
	}
}
