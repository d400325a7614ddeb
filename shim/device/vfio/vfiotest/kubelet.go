package vfiotest

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	podresources "github.com/coffer-project/coffer/proto/podresources/v1"
)

// Kubelet serves the Pod Resources API.
type Kubelet struct {
	// Socket is where.
	Socket string
	// Pods are what it tells.
	Pods []*podresources.Pod
	// NoGet is a kubelet older than 1.34 whose gate is shut; Ancient is one that has never heard of Get.
	NoGet, Ancient bool
	// Asked are the methods that were called.
	Asked []string
}

// Serve starts a kubelet that tells about pods until the test ends. Change its fields before the first call.
func Serve(tb testing.TB, pods ...*podresources.Pod) *Kubelet {
	tb.Helper()
	k := &Kubelet{Socket: filepath.Join(tb.TempDir(), "kubelet.sock"), Pods: pods}
	listener, err := net.Listen("unix", k.Socket)
	must(tb, err)
	server := grpc.NewServer()
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: "v1.PodResourcesLister", HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{method("Get", k.get), method("List", k.list)},
	}, k)
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(listener) // it ends with Stop
	}()
	tb.Cleanup(func() {
		server.Stop()
		<-served
	})
	return k
}

// method puts an answer where grpc looks for it.
func method(name string, answer func(decode func(any) error) (any, error)) grpc.MethodDesc {
	return grpc.MethodDesc{MethodName: name, Handler: func(
		_ any, _ context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor,
	) (any, error) {
		return answer(decode)
	}}
}

func (k *Kubelet) get(decode func(any) error) (any, error) {
	k.Asked = append(k.Asked, "Get")
	var request podresources.GetRequest
	if err := decode(&request); err != nil {
		return nil, err
	}
	switch {
	case k.Ancient:
		return nil, status.Error(codes.Unimplemented, "unknown method Get")
	case k.NoGet:
		return nil, errors.New("PodResources API Get method disabled")
	}
	for _, pod := range k.Pods {
		if pod.GetName() == request.GetPodName() && pod.GetNamespace() == request.GetPodNamespace() {
			return &podresources.GetResponse{PodResources: pod}, nil
		}
	}
	return nil, errors.New("pod not found")
}

func (k *Kubelet) list(decode func(any) error) (any, error) {
	k.Asked = append(k.Asked, "List")
	if err := decode(new(podresources.ListRequest)); err != nil {
		return nil, err
	}
	return &podresources.ListResponse{PodResources: k.Pods}, nil
}
