// Package bundle turns what containerd hands to a shim, an OCI bundle, into what the guest is asked for.
//
// The request is rebuilt field by field from an allow-list; nothing is copied over because it was there. What has no
// place in a guest (host paths, hooks, devices, labels) is left out and named in one warning; what cannot be left out
// without changing what the user asked for (a shared mount, a volume that cannot be copied) is refused.
//
// What the container mounts of the host becomes one of these, read from the kubelet's paths where it is a volume:
//
//	emptyDir, whole or a subPath          a volume in the guest's memory, which the pod's containers share
//	config map, secret, projected, …      a copy that follows the kubelet's switches (package hostfiles/live)
//	the termination log                   a copy that goes back to the host when the container has ended
//	other files and folders               a copy, made once for each container
//	a persistent volume, writable         an error
//
// The package reads the bundle and looks at those files; it makes no calls to the guest.
package bundle
