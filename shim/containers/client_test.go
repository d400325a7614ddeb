package containers

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"path/filepath"
	"reflect"
	"slices"
	"sync"
	"testing"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/anypb"
)

const specType = "types.containerd.io/opencontainers/runtime-spec/1/Spec"

// records is containerd's containers service for the namespace k8s.io.
type records struct {
	containersapi.UnimplementedContainersServer

	mu      sync.Mutex
	records map[string]*containersapi.Container
	updates []*containersapi.UpdateContainerRequest
	failure error // of Update
}

func (r *records) find(ctx context.Context, id string) (*containersapi.Container, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	found := r.records[id]
	if !slices.Contains(md.Get(namespaces.GRPCHeader), "k8s.io") || found == nil {
		return nil, errgrpc.ToGRPC(errdefs.ErrNotFound)
	}
	return found, nil
}

func (r *records) Get(ctx context.Context, request *containersapi.GetContainerRequest) (*containersapi.GetContainerResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	found, err := r.find(ctx, request.GetID())
	return &containersapi.GetContainerResponse{Container: found}, err
}

func (r *records) Update(ctx context.Context, request *containersapi.UpdateContainerRequest) (*containersapi.UpdateContainerResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	found, err := r.find(ctx, request.GetContainer().GetID())
	if err = errors.Join(err, r.failure); err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	r.updates = append(r.updates, request)
	found.Spec = request.GetContainer().GetSpec()
	return &containersapi.UpdateContainerResponse{Container: found}, nil
}

// serve lets a client reach containerd's service.
func serve(t *testing.T, service *records) *Client {
	t.Helper()
	address := filepath.Join(t.TempDir(), "containerd.sock")
	listener, err := net.Listen("unix", address)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	containersapi.RegisterContainersServer(server, service)
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(listener)
	}()
	t.Cleanup(func() {
		server.Stop()
		<-served
	})
	return New(address)
}

func inNamespace(t *testing.T) context.Context {
	t.Helper()
	return namespaces.WithNamespace(t.Context(), "k8s.io")
}

func TestImage(t *testing.T) {
	client := serve(t, &records{records: map[string]*containersapi.Container{"c1": {ID: "c1", Image: "registry.example/app:1"}, "c2": {ID: "c2"}}})
	for id, want := range map[string]string{"c1": "registry.example/app:1", "c2": "", "c3": ""} {
		if got, err := client.Image(inNamespace(t), id); err != nil || got != want {
			t.Errorf("%s: %q, %v", id, got, err)
		}
	}
	if _, err := New(filepath.Join(t.TempDir(), "nobody")).Image(inNamespace(t), "c1"); !errdefs.IsUnavailable(err) {
		t.Errorf("nobody listens: %v", err)
	}
	if _, err := client.Image(t.Context(), "c1"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("no namespace: %v", err)
	}
}

func TestAsksForGroup(t *testing.T) {
	asking := func(security string) map[string]*anypb.Any {
		return map[string]*anypb.Any{criExtension: {Value: []byte(`{"Version":"v1","Metadata":{"ID":"x","Config":{"linux":{"security_context":` + security + `}}}}`)}}
	}
	service := &records{records: map[string]*containersapi.Container{
		"zero": {Extensions: asking(`{"run_as_user":{"value":7},"run_as_group":{}}`)}, "five": {Extensions: asking(`{"run_as_group":{"value":5}}`)},
		"none": {Extensions: asking(`{"run_as_user":{"value":7}}`)}, "ctr's": {}, "broken": {Extensions: map[string]*anypb.Any{criExtension: {Value: []byte("{")}}},
	}}
	client := serve(t, service)
	for id, want := range map[string]bool{"zero": true, "five": true, "none": false, "ctr's": false, "absent": false} {
		if got, err := client.AsksForGroup(inNamespace(t), id); err != nil || got != want {
			t.Errorf("%s: %t, %v", id, got, err)
		}
	}
	if _, err := client.AsksForGroup(inNamespace(t), "broken"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("broken record: %v", err)
	}
	if _, err := New(filepath.Join(t.TempDir(), "nobody")).AsksForGroup(inNamespace(t), "zero"); !errdefs.IsUnavailable(err) {
		t.Errorf("nobody listens: %v", err)
	}
}

func TestSetUser(t *testing.T) {
	user := specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{7, 1001}}
	for name, tc := range map[string]struct {
		spec, want string
		user       *specs.User // nil means the one above
		err        error
		updates    int
	}{
		"stand-ins": {
			spec:    `{"process":{"user":{"uid":2147418113,"gid":2147418113,"additionalGids":[2147418112],"umask":63,"later":1.50},"args":["<&>"]},"later":{"b":1,"a":123456789012345678901}}`,
			want:    `{"process":{"user":{"uid":1000,"gid":1001,"additionalGids":[7,1001],"umask":63,"later":1.50},"args":["<&>"]},"later":{"b":1,"a":123456789012345678901}}`,
			updates: 1,
		},
		"right already":   {spec: `{"process":{"user":{"uid":1000,"gid":1001,"additionalGids":[1001,7]}}}`},
		"no user":         {spec: `{"process":{}}`, want: `{"process":{"user":{"uid":1000,"gid":1001,"additionalGids":[7,1001]}}}`, updates: 1},
		"user is null":    {spec: `{"process":{"user":null}}`, want: `{"process":{"user":{"uid":1000,"gid":1001,"additionalGids":[7,1001]}}}`, updates: 1},
		"groups go":       {spec: `{"process":{"user":{"uid":0,"gid":0,"additionalGids":[5]}}}`, user: &specs.User{GID: 5}, want: `{"process":{"user":{"uid":0,"gid":5}}}`, updates: 1},
		"no process":      {spec: `{"root":{}}`, err: errdefs.ErrFailedPrecondition},
		"not JSON":        {spec: "\x0a\x00", err: errdefs.ErrFailedPrecondition},
		"an empty record": {err: errdefs.ErrFailedPrecondition},
	} {
		t.Run(name, func(t *testing.T) {
			record := &containersapi.Container{ID: "c1", Spec: &anypb.Any{TypeUrl: specType, Value: []byte(tc.spec)}}
			service := &records{records: map[string]*containersapi.Container{"c1": record}}
			client := serve(t, service)
			if tc.user == nil {
				tc.user = &user
			}
			for range 2 { // a second time changes nothing
				if err := client.SetUser(inNamespace(t), "c1", *tc.user); !errors.Is(err, tc.err) {
					t.Fatalf("error: %v", err)
				}
			}
			if len(service.updates) != tc.updates {
				t.Fatalf("%d updates", len(service.updates))
			}
			if tc.want == "" {
				tc.want = tc.spec
			}
			if got := record.GetSpec(); got.GetTypeUrl() != specType || !sameJSON(got.GetValue(), []byte(tc.want)) {
				t.Errorf("the record has %s", got)
			}
			for _, update := range service.updates {
				if !slices.Equal(update.GetUpdateMask().GetPaths(), []string{"spec"}) {
					t.Errorf("updates %v", update.GetUpdateMask())
				}
			}
		})
	}
}

func TestSetUserFails(t *testing.T) {
	record := &containersapi.Container{ID: "c1", Spec: &anypb.Any{Value: []byte(`{"process":{}}`)}}
	client := serve(t, &records{failure: errdefs.ErrAborted, records: map[string]*containersapi.Container{"c1": record}})
	for id, want := range map[string]error{"c1": errdefs.ErrAborted, "c2": errdefs.ErrNotFound} {
		if err := client.SetUser(inNamespace(t), id, specs.User{UID: 1}); !errors.Is(err, want) {
			t.Errorf("%s: %v", id, err)
		}
	}
	if err := New(filepath.Join(t.TempDir(), "nobody")).SetUser(inNamespace(t), "c1", specs.User{}); !errdefs.IsUnavailable(err) {
		t.Errorf("nobody listens: %v", err)
	}
}

// sameJSON compares with numbers as they are written.
func sameJSON(a, b []byte) bool {
	decode := func(raw []byte) (out any) {
		decoder := json.NewDecoder(bytes.NewReader(raw))
		decoder.UseNumber()
		if err := decoder.Decode(&out); err != nil {
			return string(raw)
		}
		return out
	}
	return reflect.DeepEqual(decode(a), decode(b))
}

// FuzzWithUser: whatever a record holds, nothing but the user's ids changes, and they are then right.
func FuzzWithUser(f *testing.F) {
	f.Add([]byte(`{"process":{"user":{"uid":5},"args":["a"]},"x":[1]}`))
	f.Add([]byte(`{"Process":{"User":null}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		user := specs.User{UID: 1000, GID: 7, AdditionalGids: []uint32{7}}
		changed, err := withUser(raw, user)
		if err != nil || changed == nil {
			return
		}
		var got specs.Spec
		if err := json.Unmarshal(changed, &got); err == nil && !Same(got.Process.User, user) {
			t.Errorf("%q became %q", raw, changed)
		}
	})
}
