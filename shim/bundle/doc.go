// Package bundle turns what containerd hands to a shim, an OCI bundle, into what the guest is asked for.
//
// The request is rebuilt field by field from an allow-list; nothing is copied over because it was there. What has no
// place in a guest (host paths, hooks, devices, labels) is left out and named in one warning; what cannot be left out
// without changing what the user asked for (a user namespace, a volume that cannot be copied) is refused.
//
// Files of the host that the container mounts become copy jobs, and their mounts point to the copies in the guest.
// The package reads the bundle and those files and nothing else; it makes no calls but through Copier.
package bundle
