package vfio

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	podresources "github.com/coffer-project/coffer/proto/podresources/v1"
)

// The methods of the kubelet's Pod Resources API that tell about pods.
const (
	methodGet  = "/v1.PodResourcesLister/Get"
	methodList = "/v1.PodResourcesLister/List"
)

const (
	// kubeletTimeout bounds the question. The kubelet waits for this pod meanwhile, and answers from memory.
	kubeletTimeout = 10 * time.Second
	// maxKubeletAnswer is what the kubelet's own client takes.
	maxKubeletAnswer = 16 << 20
)

// allocated asks the kubelet what it has allocated to a pod, which CRI does not tell a sandbox. It fails with errdefs.ErrUnavailable when
// the kubelet does not answer, and with errdefs.ErrNotFound when it does not know the pod.
func allocated(ctx context.Context, socket, namespace, pod string) ([]name, error) {
	ctx, cancel := context.WithTimeout(ctx, kubeletTimeout)
	defer cancel()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxKubeletAnswer)))
	if err != nil {
		return nil, fmt.Errorf("reach the kubelet at %s: %w: %w", socket, err, errdefs.ErrInvalidArgument)
	}
	defer conn.Close()
	found, err := podOf(ctx, conn, namespace, pod)
	if err != nil {
		return nil, fmt.Errorf("ask the kubelet at %s for the devices of pod %s/%s: %w", socket, namespace, pod, err)
	}
	return namesOf(found), nil
}

// podOf looks for one pod, and through all of them where the kubelet's Get is missing or its feature gate is off.
func podOf(ctx context.Context, conn *grpc.ClientConn, namespace, name string) (*podresources.Pod, error) {
	var one podresources.GetResponse
	getErr := conn.Invoke(ctx, methodGet, &podresources.GetRequest{PodName: name, PodNamespace: namespace}, &one)
	switch {
	case getErr == nil && one.GetPodResources() != nil:
		return one.GetPodResources(), nil
	case status.Code(getErr) == codes.Unavailable, ctx.Err() != nil:
		return nil, fmt.Errorf("%w: %w", errdefs.ErrUnavailable, getErr)
	}
	var all podresources.ListResponse
	if err := conn.Invoke(ctx, methodList, &podresources.ListRequest{}, &all); err != nil {
		return nil, fmt.Errorf("%w: %w", errdefs.ErrUnavailable, errors.Join(err, getErr))
	}
	for _, pod := range all.GetPodResources() {
		if pod.GetName() == name && pod.GetNamespace() == namespace {
			return pod, nil
		}
	}
	return nil, errors.Join(fmt.Errorf("it does not know the pod, so nobody has allocated devices to it: %w", errdefs.ErrNotFound), getErr)
}

// namesOf are the devices of all containers of a pod: what device plugins gave, and what dynamic allocation did.
func namesOf(pod *podresources.Pod) (names []name) {
	for _, container := range pod.GetContainers() {
		source := fmt.Sprintf("the kubelet has allocated to container %.64q", container.GetName())
		for _, devices := range container.GetDevices() {
			for _, id := range devices.GetDeviceIds() {
				names = append(names, name{name: devices.GetResourceName() + "=" + id, source: source, plugin: true})
			}
		}
		for _, claim := range container.GetDynamicResources() {
			for _, resource := range claim.GetClaimResources() {
				for _, device := range resource.GetCdiDevices() {
					names = append(names, name{name: device.GetName(), source: source})
				}
			}
		}
	}
	return names
}
