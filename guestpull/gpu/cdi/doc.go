// Package cdi gives containers the devices that the host's annotations ask for, as the guest's own specifications (Container Device
// Interface, https://github.com/cncf-tags/container-device-interface) say.
//
//	cdi.k8s.io/vfio0 = nvidia.com/gpu=0      from the host: which device, and no more
//	/var/run/cdi/nvidia.yaml                 from the guest's own tools: what having it means
//
// The host chooses among devices that are there; it has no say in what is mounted, set or run for them. Specifications are written by
// programs that are measured, but from what devices say; so they are held to rules as well, see [Rules].
package cdi
