package spec

import (
	"errors"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coffer-project/coffer/proto/oci"
)

func buildLinux(in *oci.Linux, o Options) (*specs.Linux, error) {
	if users, err := MappedUsers(in); err != nil || users != o.Users {
		return nil, errors.Join(refuse("user namespace of container %s", o.ContainerID), err)
	}
	if in.GetIntelRdt() != nil {
		return nil, refuse("container %s asks for a cache allocation class, which a guest cannot grant", o.ContainerID)
	}
	namespaces, err := buildNamespaces(in.GetNamespaces(), o)
	if err != nil {
		return nil, err
	}
	out := &specs.Linux{CgroupsPath: o.CgroupPath, Namespaces: namespaces}
	if o.Users.Mapped() {
		out.UIDMappings, out.GIDMappings = []specs.LinuxIDMapping{o.Users.UID}, []specs.LinuxIDMapping{o.Users.GID}
	}
	if out.Sysctl, err = buildSysctl(in.GetSysctl()); err != nil {
		return nil, err
	}
	if out.Devices, err = buildDevices(in.GetDevices(), o.Disks); err != nil {
		return nil, err
	}
	if out.Resources, err = BuildResources(in.GetResources()); err != nil {
		return nil, err
	}
	out.Resources.Devices = deviceRules(out.Devices)
	if out.Seccomp, err = buildSeccomp(in.GetSeccomp()); err != nil {
		return nil, err
	}
	if out.MaskedPaths, err = checkPaths("masked path", in.GetMaskedPaths()); err != nil {
		return nil, err
	}
	if out.ReadonlyPaths, err = checkPaths("read-only path", in.GetReadonlyPaths()); err != nil {
		return nil, err
	}
	return out, nil
}

// buildNamespaces checks what the host named and answers with the guest's own set: the host may say that it wants a namespace,
// but which one a container joins is decided here.
func buildNamespaces(in []*oci.LinuxNamespace, o Options) ([]specs.LinuxNamespace, error) {
	for _, ns := range in {
		switch specs.LinuxNamespaceType(ns.GetType()) {
		case specs.MountNamespace, specs.PIDNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.CgroupNamespace,
			specs.UserNamespace,
			// The network is the guest's own: all containers of the pod share it, as they would a pod's.
			specs.NetworkNamespace:
		default:
			return nil, refuse("namespace type %.32q of container %s is not allowed in this guest", ns.GetType(), o.ContainerID)
		}
		if ns.GetType() == string(specs.UserNamespace) && !o.Users.Mapped() {
			return nil, refuse("user namespace of container %s without mappings", o.ContainerID)
		}
		if ns.GetPath() != "" {
			return nil, refuse("container %s names a path for its %s namespace: the guest chooses it", o.ContainerID, ns.GetType())
		}
	}
	out := []specs.LinuxNamespace{
		{Type: specs.MountNamespace},
		{Type: specs.CgroupNamespace},
		{Type: specs.UTSNamespace, Path: o.UTS},
		{Type: specs.IPCNamespace, Path: o.IPC},
		{Type: specs.PIDNamespace, Path: o.PID},
	}
	if o.Users.Mapped() {
		out = append(out, specs.LinuxNamespace{Type: specs.UserNamespace, Path: o.User})
	}
	return out, nil
}

// buildSysctl accepts what belongs to the sandbox's IPC namespace, and by name what Kubernetes calls safe in the network
// namespace, which is the guest's own.
func buildSysctl(in map[string]string) (map[string]string, error) {
	if len(in) > maxSysctls {
		return nil, refuse("%d sysctls: at most %d are allowed", len(in), maxSysctls)
	}
	out := make(map[string]string, len(in))
	for name, value := range in {
		if !ipcSysctl(name) && !netSysctls[name] {
			return nil, refuse("sysctl %.64q is not allowed in this guest", name)
		}
		if len(value) > 256 || strings.ContainsAny(value, "\n\x00") {
			return nil, refuse("value of sysctl %s", name)
		}
		out[name] = value
	}
	return out, nil
}

func ipcSysctl(name string) bool {
	return slices.Contains([]string{"kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall",
		"kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced"}, name) || strings.HasPrefix(name, "fs.mqueue.") &&
		slices.Contains([]string{"msg_default", "msg_max", "msgsize_default", "msgsize_max", "queues_max"},
			strings.TrimPrefix(name, "fs.mqueue."))
}

var netSysctls = words(`net.ipv4.ip_local_port_range net.ipv4.ip_local_reserved_ports net.ipv4.ip_unprivileged_port_start
	net.ipv4.ping_group_range net.ipv4.tcp_fin_timeout net.ipv4.tcp_keepalive_intvl net.ipv4.tcp_keepalive_probes
	net.ipv4.tcp_keepalive_time net.ipv4.tcp_rmem net.ipv4.tcp_syncookies net.ipv4.tcp_wmem net.core.somaxconn`)

// TakeNetSysctls removes the sysctls of the network from the specification and returns them: the container has no network
// namespace of its own, so the agent must set them in the guest's.
func TakeNetSysctls(s *specs.Spec) map[string]string {
	out := make(map[string]string)
	for name, value := range s.Linux.Sysctl {
		if netSysctls[name] {
			out[name] = value
			delete(s.Linux.Sysctl, name)
		}
	}
	return out
}
