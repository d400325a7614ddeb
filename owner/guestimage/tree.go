package guestimage

import (
	"maps"
	"path"
	"slices"
)

// static is what every guest's root holds besides programs and modules. There are no secrets and no settings in it: what
// differs between pods comes by initdata and by the agent protocol.
var static = []entry{
	dir("dev", 0o755), dir("etc", 0o755), dir("etc/coffer", 0o755), dir("lib", 0o755), dir("lib/modules", 0o755),
	dir("proc", 0o555), dir("root", 0o700), dir("run", 0o755), dir("sbin", 0o755), dir("sys", 0o555), dir("tmp", 0o1777),
	dir("usr", 0o755), dir("usr/bin", 0o755), dir("var", 0o755), dir("var/tmp", 0o1777),
	link("var/run", "/run"),
	// The program that the kernel calls for a module is the agent by another name.
	link("sbin/modprobe", "/init"),
	// The kernel opens the console for PID 1 before PID 1 can mount /dev.
	char("dev/console", 0o600, 5, 1), char("dev/null", 0o666, 1, 3),
	file("etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/false\n")),
	file("etc/group", 0o644, []byte("root:x:0:\ntty:x:5:\n")),
	file("etc/hosts", 0o644, []byte("127.0.0.1 localhost\n::1 localhost\n")),
	file("etc/nsswitch.conf", 0o644, []byte("hosts: files dns\n")),
}

// tree lists the initramfs.
func tree(in *loaded, modules *moduleSet) []entry {
	entries := slices.Clone(static)
	entries = append(entries,
		file("init", 0o755, in.agent),
		// Where the agent looks for it: beside itself.
		file("coffer-unpack", 0o755, in.unpacker),
		file("usr/bin/runc", 0o755, in.runc),
		file("etc/coffer/modules", 0o644, modules.order),
	)
	base := path.Join("lib/modules", in.kernel.version)
	dirs := map[string]bool{base: true}
	for name, data := range modules.files {
		full := path.Join(base, name)
		entries = append(entries, file(full, 0o644, data))
		for up := path.Dir(full); up != base; up = path.Dir(up) {
			dirs[up] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(dirs)) {
		entries = append(entries, dir(name, 0o755))
	}
	return entries
}
