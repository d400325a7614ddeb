# Interface policy of a pod, written by cofferctl policy generate. The data at the end is what its manifest and its images say; the rules
# are the same for every pod. Each fault below is a reason that the host is told; a request is allowed when it has none.
package agent_policy

import rego.v1

# --- what every pod needs -------------------------------------------------------------------------------------------------------------

default CloseStdinRequest := true
default DestroySandboxRequest := true
default GetMetricsRequest := true
default GetOOMEventRequest := true
default GuestDetailsRequest := true
default ListInterfacesRequest := true
default ListRoutesRequest := true
default OnlineCPUMemRequest := true
default PauseContainerRequest := true
default ReseedRandomDevRequest := true
default ResumeContainerRequest := true
default SignalProcessRequest := true
default StatsContainerRequest := true
default TtyWinResizeRequest := true
default UpdateContainerRequest := true
default WaitProcessRequest := true

UpdateInterfaceRequest if not input.interface.name == "lo"

UpdateRoutesRequest if every route in input.routes.Routes { route.device != "lo" }

AddARPNeighborsRequest if every neighbor in input.neighbors.ARPNeighbors { neighbor.device != "lo" }

reasons contains fault if {
	some fault in create_faults
	input.coffer.method == "CreateContainer"
}

reasons contains fault if {
	some fault in sandbox_faults
	input.coffer.method == "CreateSandbox"
}

reasons contains fault if {
	some fault in exec_faults
	input.coffer.method == "ExecProcess"
}

# --- the pod --------------------------------------------------------------------------------------------------------------------------

CreateSandboxRequest if count(sandbox_faults) == 0

sandbox_faults contains "the host chooses kernel modules or hooks" if count(input.kernel_modules) + count(input.guest_hook_path) > 0

sandbox_faults contains "containers share a process namespace, or should and do not" if input.sandbox_pidns != policy_data.share_pid

sandbox_faults contains "the pod has a storage other than shared memory" if {
	some storage in input.storages
	not shared_memory(storage)
}

shared_memory(storage) if {
	storage.driver == "ephemeral"
	storage.mount_point == "/run/kata-containers/sandbox/shm"
}

# --- files ----------------------------------------------------------------------------------------------------------------------------

shared := "/run/kata-containers/shared/containers/"

CopyFileRequest if copied

RemoveFilesRequest := true

copied if {
	copied_path
	input.file_type in {"Regular", "Directory"}
}

# A link stays within its folder, as those of config maps do.
copied if {
	copied_path
	input.file_type == "Symlink"
	contains(substring(input.path, count(shared), -1), "/")
	not startswith(input.symlink_target, "/")
	not regex.match(`(^|/)\.\.($|/)`, input.symlink_target)
}

copied_path if {
	startswith(input.path, shared)
	not regex.match(`(^|/)\.\.?($|/)`, input.path)
}

# --- containers: before anything is done ----------------------------------------------------------------------------------------------

CreateContainerRequest := {"allowed": true, "ops": ops} if {
	input.coffer.sandbox
	ops := []
}

CreateContainerRequest := {"allowed": true, "ops": ops} if {
	not input.coffer.sandbox
	input.coffer.stage in {"request", "container"}
	name
	count(create_faults) == 0
	ops := [{"op": "add", "path": concat("", ["/pstate/container:", input.container_id]), "value": {
		"name": name, "user": stated(input.OCI.Process),
		"ids": [object.get(input.coffer, ["process", "uid"], null), object.get(input.coffer, ["process", "gid"], null)],
	}}]
}

# stated is who the host says a process runs as.
stated(p) := [p.User.UID, p.User.GID, p.User.Username]

annotations := object.get(input, ["OCI", "Annotations"], {})

# The host says which of the pod's containers this is, and must then do all that is said of that one.
name := annotations["io.kubernetes.cri.container-name"] if policy_data.containers[annotations["io.kubernetes.cri.container-name"]]

c := policy_data.containers[name]

create_faults contains "the pod has no container of this name" if {
	not input.coffer.sandbox
	not name
}

create_faults contains sprintf("container %s runs already", [name]) if {
	some id in input.coffer.running
	data.pstate[concat("", ["container:", id])].name == name
}

create_faults contains sprintf("container %s runs once only", [name]) if {
	c.once
	data.pstate[concat("", ["started:", name])]
}

create_faults contains sprintf("container %s is to start after %s", [name, other]) if {
	some other in c.after
	not data.pstate[concat("", ["started:", other])]
}

create_faults contains sprintf("container %s is to run beside %s", [name, other]) if {
	some other in c.beside
	not running(other)
}

running(other) if {
	some id in input.coffer.running
	data.pstate[concat("", ["container:", id])].name == other
}

create_faults contains "the image that is asked for is another one" if {
	input.coffer.image.requested != ""
	not input.coffer.image.requested in c.digests
}

create_faults contains "the image's name has another digest" if {
	parts := split(input.coffer.image.reference, "@")
	count(parts) > 1
	not parts[1] in c.digests
}

create_faults contains sprintf("storage with driver %s", [storage.driver]) if {
	some storage in input.storages
	not storage_allowed(storage)
}

storage_allowed(storage) if storage.driver == "image_guest_pull"

storage_allowed(storage) if {
	storage.driver in {"ephemeral", "local"}
	"memory" in {kind | some kind in c.mounts}
}

create_faults contains sprintf("mount at %s", [mount.destination]) if {
	some mount in input.OCI.Mounts
	not mount_allowed(mount)
}

usual := {
	"/proc": {"proc"}, "/dev": {"tmpfs"}, "/dev/pts": {"devpts"}, "/dev/mqueue": {"mqueue"}, "/sys": {"sysfs"},
	"/sys/fs/cgroup": {"cgroup", "cgroup2"}, "/run": {"tmpfs"}, "/dev/shm": {"tmpfs"},
}

given := {
	"/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/termination-log",
	"/var/run/secrets/kubernetes.io/serviceaccount", "/run/secrets/kubernetes.io/serviceaccount",
}

mount_allowed(mount) if mount.type_ in usual[mount.destination]

mount_allowed(mount) if {
	mount.type_ == "bind"
	mount.destination in given
	startswith(mount.source, shared)
}

mount_allowed(mount) if {
	mount.type_ == "bind"
	mount.destination == "/dev/shm"
	mount.source == "/run/kata-containers/sandbox/shm"
}

# A folder that the image declares as a volume.
mount_allowed(mount) if {
	mount.type_ == "bind"
	mount.source == concat("", [input.OCI.Root.Path, mount.destination])
}

mount_allowed(mount) if {
	mount.type_ == "bind"
	c.mounts[mount.destination] in {"copied", "secret"}
	startswith(mount.source, shared)
}

mount_allowed(mount) if {
	some volume in object.get(input.coffer, "volumes", [])
	of_image(mount, volume)
}

mount_allowed(mount) if {
	mount.type_ == "bind"
	c.mounts[mount.destination] == "memory"
	startswith(mount.source, "/run/kata-containers/sandbox/")
}

create_faults contains sprintf("kernel variable %s", [key]) if {
	some key, value in object.get(input.OCI.Linux, "Sysctl", {})
	object.get(policy_data.sysctls, key, object.get(usual_sysctls, key, null)) != value
}

# What containerd sets in every pod's network namespace.
usual_sysctls := {"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647"}

create_faults contains "the process namespace" if input.sandbox_pidns != policy_data.share_pid

create_faults contains sprintf("capability %s", [capability]) if {
	some kind in {"Bounding", "Effective", "Inheritable", "Permitted", "Ambient"}
	some capability in object.get(input.OCI.Process, ["Capabilities", kind], [])
	not capability in c.capabilities
}

# --- containers: when everything is known, and nothing runs ---------------------------------------------------------------------------

known if input.coffer.stage == "container"

process := input.coffer.process

create_faults contains sprintf("the image that came is %s, which is another one", [input.coffer.image.digest]) if {
	known
	not image_pinned
}

image_pinned if input.coffer.image.digest in c.digests

image_pinned if input.coffer.image.target in c.digests

# A sealed secret is for readers of a secret: elsewhere the host could have it published.
create_faults contains sprintf("sealed secret in the mount at %s, which is of no secret", [file.mount_point]) if {
	some file in object.get(input.coffer, "sealed_files", [])
	not c.mounts[file.mount_point] == "secret"
}

create_faults contains "the process is not known" if {
	known
	not process
}

create_faults contains "command and arguments are others" if {
	known
	process.args != c.args
}

create_faults contains "the working directory is another one" if {
	known
	process.cwd != c.cwd
}

create_faults contains "the user is another one" if {
	known
	not user_allowed
}

user_allowed if {
	c.uid == null
	process.user_origin == "image"
}

user_allowed if {
	c.uid != null
	process.uid == c.uid
	primary_allowed
	every group in process.groups { group in allowed_groups }
}

primary_allowed if process.gid == c.gid

primary_allowed if {
	c.gid == null
	process.gid in process.image_groups
}

allowed_groups := {process.gid} | {group | some group in c.groups} | {group | some group in object.get(process, "image_groups", [])}

create_faults contains sprintf("variable %s", [variable.name]) if {
	known
	some variable in process.env
	not variable_allowed(variable)
}

create_faults contains sprintf("variable %s is missing", [wanted]) if {
	known
	some wanted, value in c.env
	not {"name": wanted, "value": value} in {{"name": v.name, "value": v.value} | some v in process.env}
}

variable_allowed(variable) if c.env[variable.name] == variable.value

variable_allowed(variable) if regex.match(c.env_patterns[variable.name], variable.value)

variable_allowed(variable) if {
	unset(variable.name)
	variable.origin in {"image", "restored"}
}

variable_allowed(variable) if {
	unset(variable.name)
	variable.origin in {"engine", "host"}
	some pattern in patterns
	regex.match(pattern, concat("=", [variable.name, variable.value]))
}

unset(key) if {
	not key in object.keys(c.env)
	not key in object.keys(c.env_patterns)
}

# What engines and Kubernetes give to every container.
patterns := {
	`^PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin$`, `^TERM=xterm$`, `^HOSTNAME=[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?$`,
	`^[A-Z_][A-Z0-9_]{0,62}_(SERVICE_HOST|PORT_[0-9]{1,5}_(TCP|UDP|SCTP)_ADDR)=[0-9a-fA-F.:]{3,45}$`,
	`^[A-Z_][A-Z0-9_]{0,62}_(SERVICE_PORT(_[A-Z0-9_]{1,15})?|PORT_[0-9]{1,5}_(TCP|UDP|SCTP)_PORT)=[0-9]{1,5}$`,
	`^[A-Z_][A-Z0-9_]{0,62}_PORT(_[0-9]{1,5}_(TCP|UDP|SCTP))?=(tcp|udp|sctp)://(\[[0-9a-fA-F:]+\]|[0-9.]+):[0-9]{1,5}$`,
	`^[A-Z_][A-Z0-9_]{0,62}_PORT_[0-9]{1,5}_(TCP|UDP|SCTP)_PROTO=(tcp|udp|sctp)$`,
}

# --- containers: later ----------------------------------------------------------------------------------------------------------------

record := data.pstate[concat("", ["container:", input.container_id])]

made := record.name

StartContainerRequest := {"allowed": true, "ops": [{"op": "add", "path": concat("", ["/pstate/started:", made]), "value": true}]} if made

# The sandbox's stand-in, which some shims ask for.
StartContainerRequest := {"allowed": true} if not made

RemoveContainerRequest := {"allowed": true, "ops": [{"op": "remove", "path": concat("", ["/pstate/container:", input.container_id])}]} if made

RemoveContainerRequest := {"allowed": true} if not made

ExecProcessRequest if count(exec_faults) == 0

exec_faults contains "this program is not among those that may be run in the container" if not exec_allowed

exec_allowed if {
	some command in policy_data.containers[made].exec
	command == input.process.Args
}

exec_allowed if {
	policy_data.containers[made].exec_any
}

exec_faults contains "it would run in another folder" if not input.process.Cwd in {"", policy_data.containers[made].cwd}

exec_faults contains "it would run as another user" if not exec_user

exec_user if stated(input.process) == record.user

exec_user if stated(input.process) == array.concat(record.ids, [""])

exec_user if input.process.User.Username == sprintf("%d:%d", record.ids)

exec_faults contains "it would have capabilities beyond the container's" if {
	some kind in {"Bounding", "Effective", "Inheritable", "Permitted", "Ambient"}
	some capability in object.get(input.process, ["Capabilities", kind], [])
	not capability in policy_data.containers[made].capabilities
}

exec_faults contains sprintf("variable %s", [split(entry, "=")[0]]) if {
	some entry in input.process.Env
	not entry_allowed(policy_data.containers[made], entry)
}

entry_allowed(container, entry) if entry in container.image_env

entry_allowed(container, entry) if {
	some key, value in container.env
	entry == concat("=", [key, value])
}

entry_allowed(container, entry) if {
	some key, pattern in container.env_patterns
	startswith(entry, concat("", [key, "="]))
	regex.match(pattern, substring(entry, count(key) + 1, -1))
}

entry_allowed(container, entry) if {
	key := split(entry, "=")[0]
	not key in object.keys(container.env)
	not key in object.keys(container.env_patterns)
	some pattern in patterns
	regex.match(pattern, entry)
}

ReadStreamRequest if stream in policy_data.containers[made].logs

stream := {"ReadStdout": "stdout", "ReadStderr": "stderr"}[input.coffer.method]

reasons contains sprintf("%s of container %s is not for the host", [stream, made]) if not ReadStreamRequest

GetDiagnosticDataRequest if count(policy_data.containers[made].logs) > 0

WriteStreamRequest if policy_data.containers[made].stdin

reasons contains "nobody may write to the program's input" if {
	input.coffer.method == "WriteStdin"
	not WriteStreamRequest
}
