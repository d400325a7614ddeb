package agentpolicy

import (
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// The stages at which a policy is asked about a CreateContainerRequest.
const (
	// StageRequest is before anything is done: of the images it is known what the host asks for.
	StageRequest = "request"
	// StageContainer is when images have been pulled and the process has been put together, and nothing of it runs yet. What is
	// allowed then changes the state; at StageRequest the operations of a rule are dropped.
	StageContainer = "container"
)

// Facts is what Coffer adds to a request: input.coffer. Every request has Method; CreateContainerRequest has the rest, where it applies.
type Facts struct {
	// Method is the name of the call, such as ReadStdout, which shares ReadStreamRequest with ReadStderr.
	Method string `json:"method"`
	// Stage is StageRequest or StageContainer.
	Stage string `json:"stage,omitempty"`
	// Sandbox: the request is for the stand-in of a sandbox container. It has no image, and no program of the host's choice runs.
	Sandbox bool `json:"sandbox"`
	// Running are the containers whose process has not ended, by id.
	Running []string `json:"running"`
	// Image is the root's.
	Image *Image `json:"image,omitempty"`
	// Volumes are images that are mounted beside the root, in the order of their storages.
	Volumes []Image `json:"volumes,omitempty"`
	// Disks are those of passed-through devices that the container gets, such as nvme0n1. Only at StageContainer.
	Disks []string `json:"disks,omitempty"`
	// Passed are the passed-through devices that the request's annotations name, such as nvidia.com/gpu=0.
	Passed []string `json:"passed,omitempty"`
	// CDI is what they bring into the container. Only at StageContainer.
	CDI *CDI `json:"cdi,omitempty"`
	// Process is the container's process as it would run. Only at StageContainer.
	Process *Process `json:"process,omitempty"`
	// SealedFiles are files of the host in which sealed secrets stand that the container would have. Only at StageContainer: files that
	// come to one of these mounts later are opened too, those of other mounts are not.
	SealedFiles []SealedFile `json:"sealed_files,omitempty"`
}

// SealedFile is a sealed secret in a mounted file. The host has put it there: nothing binds it to the mount but a policy.
type SealedFile struct {
	// MountPoint is the mount's destination in the container, Path the file's path from there ("." for a mount of the file itself).
	MountPoint string `json:"mount_point"`
	Path       string `json:"path"`
	// Secret is the name of the resource that would be fetched, Signer that of the key that is said to have signed it; both empty when the
	// text cannot be read, which fails later.
	Secret string `json:"secret"`
	Signer string `json:"signer"`
}

// CDI is what passed-through devices bring into a container by the guest's own specifications. Env is not in Process.
type CDI struct {
	Devices []string `json:"devices"`
	// Env are variables as NAME=value, Mounts have the form SOURCE:DESTINATION, and Nodes are paths in the container.
	Env    []string `json:"env"`
	Mounts []string `json:"mounts"`
	Nodes  []string `json:"nodes"`
	// Hooks are programs of the guest that run when the container is made.
	Hooks []string `json:"hooks"`
}

// Image is an image of a container.
type Image struct {
	// Reference is the name that the host gave.
	Reference string `json:"reference"`
	// Requested is the manifest that the host named beside the reference; it may be empty.
	Requested string `json:"requested"`
	// MountPoint is where a volume is mounted in the guest.
	MountPoint string `json:"mount_point,omitempty"`

	// The rest is the guest's own knowledge, verified, and only there at StageContainer.

	// Target is the digest that the reference names: an index, or the manifest itself.
	Target string `json:"target,omitempty"`
	// Digest is that of the manifest.
	Digest string `json:"digest,omitempty"`
	// Signature is null where the image security policy asked for none.
	Signature *Signature `json:"signature,omitempty"`
	// Config is the part of the image's configuration that is about running it.
	Config *ocispec.ImageConfig `json:"config,omitempty"`
}

// Signature is what became of an image's signatures.
type Signature struct {
	// Verified: at least one signature that the measured document asks for is good.
	Verified bool `json:"verified"`
	// Signers names the keys whose signatures were found good: each by the SHA-256 of its PKIX form (sha256:HEX), and by its
	// name at the key broker (kbs:///repository/type/tag) where the policy has it from there.
	Signers []string `json:"signers,omitempty"`
}

// Process is a process and where its parts come from. The origins are those of the guest's package container/origin: image,
// entrypoint, host; and of variables restored, overridden, altered and engine, too.
type Process struct {
	Args []string `json:"args"`
	Cwd  string   `json:"cwd"`
	UID  uint32   `json:"uid"`
	GID  uint32   `json:"gid"`
	// Groups are the additional ones.
	Groups []uint32 `json:"groups"`
	// ImageGroups are those that the verified image puts a user of this number in, its primary one included.
	ImageGroups []uint32   `json:"image_groups"`
	Env         []Variable `json:"env"`

	ArgsOrigin string `json:"args_origin"`
	CwdOrigin  string `json:"cwd_origin"`
	UserOrigin string `json:"user_origin"`
}

// Variable is one variable of a process's environment.
type Variable struct {
	Name   string `json:"name"`
	Value  string `json:"value"`
	Origin string `json:"origin"`
	// Verified is the image's value, of variables that the image has.
	Verified string `json:"verified,omitempty"`
}
