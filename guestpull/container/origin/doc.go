// Package origin puts a container's process together from its two sources, and says which part came from which.
//
// The sources are the configuration of the image, which the guest has verified, and the specification of the host. An
// honest container engine has already merged the two on the host, from a copy of the configuration that nobody has
// verified for the guest, with what the pod's specification overrides: command, arguments, variables, folder and user.
// The guest cannot know what the pod's specification says. So this package
//
//   - takes from the image whatever the host has not stated: arguments, folder, and each variable on its own;
//   - leaves what the host has stated, and tells for every part whether it is what the image says.
//
// The second is the input of a policy, which alone can tell an override that the pod's owner wants from one that the
// host has made up. Until there is one, the guest reports and logs the difference.
//
// containerd's CRI plugin lists the image's variables first and the pod's after them, so that a variable that the pod
// overrides stands in the list twice (PATH, TERM and HOSTNAME excepted, which it replaces in place). A variable of the
// image that is there once, with another value, is therefore a sign that the engine's copy of the configuration is not
// the one that the guest has verified: [Altered]. Engines other than containerd's CRI replace in place and cause it, too.
package origin
