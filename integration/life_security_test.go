package integration

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// statusOf reads one line of the first process's status: what the kernel says of it.
func statusOf(field string) string {
	return "while read -r key value; do test $key = " + field + ": && echo $value; done < /proc/1/status; true"
}

// lifeSecurity checks in the kernel's own words what a container's first process may do.
func lifeSecurity(t *testing.T, l *lab) {
	runtimeDefault := &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_RuntimeDefault}
	profile := filepath.Join(t.TempDir(), "no-mkdir.json")
	if err := os.WriteFile(profile, []byte(`{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64"],
		"syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":13}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		edit    func(*runtime.LinuxContainerSecurityContext)
		answers map[string]string
	}{
		"defaults": {
			edit: func(s *runtime.LinuxContainerSecurityContext) {
				// What the kubelet sends for an ordinary container.
				s.MaskedPaths, s.ReadonlyPaths = []string{"/proc/kcore", "/proc/keys", "/sys/firmware"}, []string{"/proc/sys", "/proc/bus"}
			},
			answers: map[string]string{
				statusOf("CapEff"): "00000000a80425fb", statusOf("CapBnd"): "00000000a80425fb", statusOf("NoNewPrivs"): "0",
				"busybox hostname other 2>&1 || true":                 "hostname: sethostname: Operation not permitted",
				"{ echo 1 > /proc/sys/vm/drop_caches; } 2>&1 || true": "/bin/sh: can't create /proc/sys/vm/drop_caches: Read-only file system",
				"wc -c < /proc/keys":                                  "0",
			},
		},
		"no capabilities": {
			edit: func(s *runtime.LinuxContainerSecurityContext) {
				s.Capabilities = &runtime.Capability{DropCapabilities: []string{"ALL"}}
			},
			answers: map[string]string{statusOf("CapEff"): "0000000000000000", statusOf("CapBnd"): "0000000000000000"},
		},
		"one capability": {
			edit: func(s *runtime.LinuxContainerSecurityContext) {
				s.Capabilities = &runtime.Capability{DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"SYS_ADMIN"}}
			},
			answers: map[string]string{statusOf("CapEff"): "0000000000200000", "mount -t tmpfs none /tmp && echo mounted": "mounted"},
		},
		"no new privileges": {
			edit:    func(s *runtime.LinuxContainerSecurityContext) { s.NoNewPrivs = true },
			answers: map[string]string{statusOf("NoNewPrivs"): "1"},
		},
		"unconfined": {
			edit: func(s *runtime.LinuxContainerSecurityContext) {
				s.Seccomp = &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Unconfined}
			},
			answers: map[string]string{statusOf("Seccomp"): "0"},
		},
		"default filter": {
			edit: func(s *runtime.LinuxContainerSecurityContext) { s.Seccomp = runtimeDefault },
			answers: map[string]string{
				statusOf("Seccomp"): "2",
				// A new user namespace needs no privilege but this filter's consent.
				"busybox unshare -U true 2>&1 || true": "unshare: unshare(0x10000000): Operation not permitted",
			},
		},
		"own filter": {
			edit: func(s *runtime.LinuxContainerSecurityContext) {
				s.Seccomp = &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Localhost, LocalhostRef: profile}
			},
			answers: map[string]string{
				statusOf("Seccomp"): "2", "busybox mkdir /x 2>&1 || true": "mkdir: can't create directory '/x': Permission denied",
			},
		},
		"masked paths": {
			edit: func(s *runtime.LinuxContainerSecurityContext) {
				s.MaskedPaths, s.ReadonlyPaths = []string{"/proc/cpuinfo", "/etc"}, []string{"/tmp"}
			},
			answers: map[string]string{
				"cat /proc/cpuinfo":         "",
				"ls /etc":                   "",
				"touch /tmp/x 2>&1 || true": "touch: /tmp/x: Read-only file system",
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			l.compare(t, func(config *runtime.ContainerConfig) { tc.edit(config.Linux.SecurityContext) }, tc.answers)
		})
	}
}

// lifeDevices opens devices that belong to no hardware; the guest's kernel loads what they need.
func lifeDevices(t *testing.T, l *lab) {
	devices := map[string]uint64{"/dev/fuse": unix.Mkdev(10, 229), "/dev/net/tun": unix.Mkdev(10, 200)}
	var wanted []*runtime.Device
	for path, number := range devices {
		host := filepath.Join(t.TempDir(), "device")
		if err := unix.Mknod(host, unix.S_IFCHR|0o666, int(number)); err != nil {
			t.Fatal(err)
		}
		wanted = append(wanted, &runtime.Device{HostPath: host, ContainerPath: path, Permissions: "rwm"})
	}
	c := l.sleeper(t, func(config *runtime.ContainerConfig) { config.Devices = wanted })
	for path := range devices {
		if got := l.sh(t, c, "exec 3<>"+path+" && echo open"); got != "open" {
			t.Errorf("%s: %q", path, got)
		}
	}
}
