package doctor

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/proto/initdata"
	"github.com/coffer-project/coffer/proto/ovmf/ovmftest"
	shim "github.com/coffer-project/coffer/shim/config"
	"github.com/coffer-project/coffer/shim/tee"
)

func TestHealthyNode(t *testing.T) {
	findings := healthy().examine(t)
	for _, f := range findings {
		// No machine keeps the host out of a guest's memory yet.
		if (f.Status == Warn || f.Status == Fail) && f.Check != "confidential computing" {
			t.Errorf("%+v", f)
		}
		if (f.Cure != "") != (f.Status == Warn || f.Status == Fail) {
			t.Errorf("%s is %s and has the cure %q", f.Check, f.Status, f.Cure)
		}
	}
	seen := map[string]bool{}
	for _, f := range findings {
		seen[f.Check] = true
	}
	if len(seen) != len(checks) {
		t.Errorf("%d of %d checks found something:\n%s", len(seen), len(checks), asJSON(t, findings))
	}
}

// replace changes containerd's configuration.
func replace(from, to string) func(*node) {
	return func(n *node) {
		text := n.host.programs["containerd config dump"]
		if !strings.Contains(text, from) {
			panic("no " + from)
		}
		n.host.programs["containerd config dump"] = strings.Replace(text, from, to, 1)
	}
}

func program(line, text string) func(*node) {
	return func(n *node) { n.host.programs[line] = text }
}

func file(path, content string) func(*node) { return func(n *node) { n.host.put(path, content) } }

func without(path string) func(*node) { return func(n *node) { n.host.drop(path) } }

// nodeDefault turns node-default mode on, and forgets everything but the address and the default.
func nodeDefault(n *node) {
	n.snapshotterText = "[node_default]\naddress = \"/run/second.sock\"\n"
	replace("snapshotter = 'overlayfs'", "snapshotter = 'second'")(n)
	replace("[proxy_plugins.coffer]", "[proxy_plugins.second]\n  type = 'snapshot'\n  address = '/run/second.sock'\n  capabilities = ['remap-ids']\n[proxy_plugins.coffer]")(n)
}

func TestBrokenNodes(t *testing.T) {
	const qemu = "/usr/bin/qemu-system-x86_64"
	fault := errors.New("it is broken")
	for name, test := range map[string]struct {
		breakIt func(*node)
		check   string
		status  Status
		fact    string
	}{
		"shim key unknown":    {func(n *node) { n.shimText = "colour = 1\n" }, "shim configuration", Fail, "unknown key colour"},
		"snapshotter faults":  {func(n *node) { n.snapshotterText = "version = 7\nroot = \"x\"\n" }, "snapshotter configuration", Fail, "root"},
		"no qemu":             {func(n *node) { delete(n.host.programs, qemu+" --version") }, "qemu", Fail, "does not run"},
		"old qemu":            {program(qemu+" --version", "QEMU emulator version 9.2.0"), "qemu", Fail, "9.2"},
		"qemu without serial": {program(qemu+" -device help", `name "virtio-net-pci" name "virtio-blk-pci" name "vhost-vsock-pci"`), "qemu devices", Fail, "lacks virtserialport"},
		"no kernel":           {without("/usr/share/coffer/guest/vmlinux"), "guest image", Fail, "vmlinux"},
		"empty initrd":        {file("/usr/share/coffer/guest/initrd.cpio", ""), "guest image", Fail, "empty"},
		"other kernel":        {file("/usr/share/coffer/guest/vmlinux", "other"), "guest image", Fail, "not the file that was built"},
		"no manifest":         {without("/usr/share/coffer/guest/manifest.json"), "guest image", Warn, "manifest.json"},
		"broken manifest":     {file("/usr/share/coffer/guest/manifest.json", "{"), "guest image", Warn, "manifest"},
		"kvm spins": {func(n *node) {
			n.Probes.Boot = func(context.Context, *shim.Config) (string, string, error) { return "tcg", "no boot within 15s", nil }
		}, "accelerator", Warn, "no boot within 15s"},
		"tcg asked for": {func(n *node) {
			n.Probes.Boot = func(context.Context, *shim.Config) (string, string, error) { return "tcg", "", nil }
		}, "accelerator", Warn, "is tcg"},
		"no boot at all": {func(n *node) {
			n.Probes.Boot = func(context.Context, *shim.Config) (string, string, error) { return "", "", fault }
		}, "accelerator", Fail, "it is broken"},
		"little memory":      {file("/proc/meminfo", "MemAvailable: 1024 kB\n"), "memory", Warn, "1 MiB"},
		"no vsock":           {without("/dev/vhost-vsock"), "vsock", Warn, "serial"},
		"vsock demanded":     {func(n *node) { n.host.drop("/dev/vhost-vsock"); n.shimText = "[hypervisor]\ntransport = \"vsock\"\n" }, "vsock", Fail, "vhost-vsock"},
		"no tun":             {without("/dev/net/tun"), "pod network", Fail, "tun"},
		"no tc":              {func(n *node) { n.Probes.Network = func(context.Context) error { return fault } }, "pod network", Fail, "it is broken"},
		"few watches":        {file("/proc/sys/fs/inotify/max_user_instances", "128\n"), "file watches", Warn, "128"},
		"cgroups v1":         {without("/sys/fs/cgroup/cgroup.controllers"), "control groups", Warn, "v1"},
		"no overlay":         {file("/proc/filesystems", "\text4\n"), "overlayfs", Fail, "overlay"},
		"no containerd":      {func(n *node) { delete(n.host.programs, "containerd --version") }, "containerd", Fail, "does not run"},
		"old containerd":     {program("containerd --version", "containerd github.com/containerd/containerd/v2 v2.2.1 x"), "containerd", Fail, "2.2.1"},
		"broken containerd":  {program("containerd config dump", "!"), "containerd", Fail, "cannot read"},
		"no shim":            {func(n *node) { delete(n.host.programs, "containerd-shim-coffer-v2 -v") }, "shim binary", Fail, "does not run"},
		"no proxy plugin":    {replace(containerd[strings.Index(containerd, "[proxy"):], ""), "containerd snapshotter", Fail, "no proxy plugin"},
		"other address":      {replace("/run/coffer-snapshotter/snapshotter.sock", "/run/other.sock"), "containerd snapshotter", Fail, "/run/other.sock"},
		"no annotations":     {replace("enable_remote_snapshot_annotations", "disable"), "containerd snapshotter", Fail, "enable_remote_snapshot_annotations"},
		"capability":         {replace("['remap-ids']", "['remap-ids', 'rebase']"), "containerd snapshotter", Fail, "capabilities rebase:"},
		"no user namespaces": {replace("['remap-ids']", "[]"), "containerd snapshotter", Warn, "remap-ids"},
		"other file": {func(n *node) {
			replace("ConfigPath = '/etc/coffer/shim.toml'", "")(n)
			replace("[proxy_plugins.coffer]", "[plugins.'io.containerd.shim.v1.manager']\n  env = ['COFFER_SHIM_CONFIG=/etc/default.toml']\n[proxy_plugins.coffer]")(n)
		}, "containerd handlers", Warn, "/etc/default.toml"},
		"other root":         {replace("/var/lib/coffer-snapshotter", "/var/lib/x"), "containerd snapshotter", Warn, "/var/lib/x"},
		"no handler":         {replace("io.containerd.coffer.v2", "io.containerd.kata.v2"), "containerd handlers", Fail, "no runtime handler"},
		"handler unpacks":    {replace("snapshotter = 'coffer'", "snapshotter = ''"), "containerd handlers", Fail, "unpacked on this host"},
		"pause pulled":       {replace("disable_pause_image_pull = true", ""), "containerd handlers", Warn, "pause"},
		"strange sandboxer":  {replace("sandboxer = 'shim'", "sandboxer = 'none'"), "containerd handlers", Fail, "none"},
		"no pod annotations": {replace("pod_annotations = ['io.katacontainers.*']", ""), "containerd handlers", Warn, "annotations"},
		"no such ConfigPath": {replace("/etc/coffer/shim.toml", "/etc/none.toml"), "containerd handlers", Fail, "none.toml"},
		"no unpack entry":    {replace("snapshotter = 'coffer'\n[proxy_plugins", "snapshotter = 'x'\n[proxy_plugins"), "containerd unpacking", Fail, "no unpack platforms defined"},
		"others not listed":  {replace("platform = 'linux/amd64'\n  snapshotter = 'overlayfs'", "platform = 'linux/s390x'\n  snapshotter = 'overlayfs'"), "containerd unpacking", Warn, "no other"},
		"default not known":  {func(n *node) { n.snapshotterText = "[node_default]\naddress = \"/run/second.sock\"\n" }, "containerd default", Fail, "/run/second.sock"},
		"default not used": {func(n *node) {
			n.snapshotterText = "[node_default]\naddress = \"/run/second.sock\"\n"
			replace("[proxy_plugins.coffer]", "[proxy_plugins.second]\n  address = '/run/second.sock'\n[proxy_plugins.coffer]")(n)
		}, "containerd default", Warn, "overlayfs"},
		"default not unpacked":        {nodeDefault, "containerd unpacking", Fail, "no entry for second"},
		"default without annotations": {nodeDefault, "containerd snapshotter", Fail, "proxy_plugins.second.exports lacks enable_remote_snapshot_annotations"},
		"default with another root":   {nodeDefault, "containerd snapshotter", Warn, "proxy_plugins.second.exports.root"},
		"default with capabilities":   {nodeDefault, "containerd snapshotter", Fail, "proxy_plugins.second has capabilities remap-ids"},
		"default is down": {func(n *node) {
			replace("snapshotter = 'overlayfs'", "snapshotter = 'stargz'")(n)
			replace("[proxy_plugins.coffer]", "[proxy_plugins.stargz]\n  address = '/run/stargz.sock'\n[proxy_plugins.coffer]")(n)
			n.Probes.Snapshotter = func(_ context.Context, address string) error {
				if address == "/run/stargz.sock" {
					return fault
				}
				return nil
			}
		}, "containerd default", Fail, "stargz"},
		"containerd elsewhere": {without("/run/containerd/containerd.sock"), "containerd socket", Warn, "containerd.sock"},
		"snapshotter down":     {func(n *node) { n.Probes.Snapshotter = func(context.Context, string) error { return fault } }, "snapshotter", Fail, "it is broken"},
		"no unit":              {program("systemctl cat coffer-snapshotter.service", "!"), "snapshotter service", Warn, "no unit"},
		"unit failed":          {program("systemctl is-active coffer-snapshotter.service", "!failed\n"), "snapshotter service", Fail, "is failed"},
		"unit not enabled":     {program("systemctl is-enabled coffer-snapshotter.service", "!disabled\n"), "snapshotter service", Warn, "disabled"},
		"clock":                {func(n *node) { n.Probes.Synchronised = func() (bool, error) { return false, nil } }, "clock", Warn, "nothing keeps"},
		"orphans":              {func(n *node) { n.Probes.Orphans = func(context.Context, string) (int, error) { return 2, nil } }, "left-over pods", Warn, "2 pods"},
	} {
		t.Run(name, func(t *testing.T) {
			n := healthy()
			test.breakIt(n)
			findings := n.examine(t)
			for _, f := range findings {
				if f.Check == test.check && f.Status == test.status && strings.Contains(f.Fact, test.fact) {
					if f.Cure == "" {
						t.Error("there is no cure")
					}
					return
				}
			}
			t.Errorf("no %s of %q with %q:\n%s", test.status, test.check, test.fact, asJSON(t, findings))
		})
	}
}

// TestNodeDefault: a node whose second snapshotter is containerd's default, and one that leaves everything to guests.
func TestNodeDefault(t *testing.T) {
	const unpack = "[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\n  platform = 'linux/amd64'\n  snapshotter = 'second'\n"
	const second = "[proxy_plugins.second]\n  type = 'snapshot'\n  address = '/run/second.sock'\n" +
		"  [proxy_plugins.second.exports]\n    enable_remote_snapshot_annotations = 'true'\n    root = '/var/lib/coffer-snapshotter/default'\n"
	for name, test := range map[string]struct {
		snapshotter, tables, used string
		wants                     []string
	}{
		"node-default mode": {
			"[node_default]\naddress = \"/run/second.sock\"\n", unpack + second, "second",
			[]string{"second decides image by image", "unpacks for overlayfs, coffer, second", "proxy_plugins.coffer and proxy_plugins.second: complete"},
		},
		"all for guests": {"", "", "coffer", []string{"every image is left to guests"}},
	} {
		t.Run(name, func(t *testing.T) {
			n := healthy()
			n.snapshotterText = test.snapshotter
			replace("[proxy_plugins.coffer]", test.tables+"[proxy_plugins.coffer]")(n)
			replace("snapshotter = 'overlayfs'", "snapshotter = '"+test.used+"'")(n)
			text := asJSON(t, n.examine(t))
			for _, want := range test.wants {
				if !strings.Contains(text, want) {
					t.Errorf("no %q in\n%s", want, text)
				}
			}
		})
	}
}

// TestTEE: a machine that could do more than its configuration asks for is told so.
func TestTEE(t *testing.T) {
	n := healthy()
	n.host.put("/sys/module/kvm_amd/parameters/sev_snp", "Y\n")
	n.host.put("/dev/sev", "")
	n.host.put("/sys/kernel/iommu_groups/0", "")
	n.host.put("/dev/iommu", "")
	text := asJSON(t, n.examine(t))
	for _, want := range []string{"SEV-SNP is on, and this configuration does not use it", "1 IOMMU group, devices can be handed over by iommufd"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}

// confidential makes a node that starts confidential guests.
func confidential(preset string) *node {
	n := healthy()
	n.shimText = "preset = \"" + preset + "\"\n"
	n.host.put("/sys/module/kvm_amd/parameters/sev_snp", "Y\n")
	n.host.put("/sys/module/kvm_intel/parameters/tdx", "Y\n")
	n.host.put("/dev/sev", "")
	n.host.put("/var/run/tdx-qgs/qgs.socket", "")
	n.host.put("/opt/kata/share/ovmf/AMDSEV.fd", string(ovmftest.AmdSev()))
	n.host.put("/usr/share/ovmf/OVMF.fd", string(ovmftest.TDX(nil)))
	n.host.put("/usr/share/coffer/guest/vmlinuz", "kernel")
	n.host.put("/usr/share/coffer/guest/manifest.json", fmt.Sprintf(`{"files":[{"name":"vmlinuz","sha256":"%x"},{"name":"initrd.cpio","sha256":"%x"}]}`,
		sha256.Sum256([]byte("kernel")), sha256.Sum256([]byte("initrd"))))
	n.host.put("/sys/fs/cgroup/misc.capacity", "sev 10\nsev_es 99\ntdx 31\n")
	return n
}

func TestConfidentialNode(t *testing.T) {
	for name, want := range map[string]string{"snp": "up to 99 guests at a time", "gpu-tdx": "up to 31 guests at a time"} {
		findings := confidential(name).examine(t)
		if text := asJSON(t, findings); Worst(findings) != OK || !strings.Contains(text, want) {
			t.Errorf("%s: %s", name, text)
		}
	}
	for name, tc := range map[string]struct {
		preset  string
		breakIt func(*node)
		check   string
		fact    string
	}{
		"snp off":         {"snp", file("/sys/module/kvm_amd/parameters/sev_snp", "N\n"), "confidential computing", "SEV-SNP is off"},
		"other processor": {"snp", func(n *node) { n.Probes.SEV = func() tee.SEV { return tee.SEV{} } }, "confidential computing", "no SEV-SNP"},
		"tdx off":         {"tdx", without("/sys/module/kvm_intel/parameters/tdx"), "confidential computing", "TDX is off"},
		"no quotes":       {"tdx", without("/var/run/tdx-qgs/qgs.socket"), "confidential computing", "tdx.quote_service"},
		"no room":         {"snp", file("/opt/kata/share/ovmf/AMDSEV.fd", string(ovmftest.X64())), "confidential computing", "no SEV hash table"},
		"qemu 10.0":       {"tdx", program("/usr/bin/qemu-system-x86_64 -object help", "sev-snp-guest\niommufd\n"), "qemu devices", "no tdx-guest"},
		"no vsock":        {"snp", without("/dev/vhost-vsock"), "vsock", "by vsock only"},
	} {
		t.Run(name, func(t *testing.T) {
			n := confidential(tc.preset)
			tc.breakIt(n)
			for _, f := range n.examine(t) {
				if f.Check == tc.check && f.Status == Fail && strings.Contains(f.Fact, tc.fact) && f.Cure != "" {
					return
				}
			}
			t.Errorf("not found: %s", asJSON(t, n.examine(t)))
		})
	}
}

func TestHugePages(t *testing.T) {
	for free, want := range map[string]Status{"1024\n": OK, "1023\n": Fail} {
		n := healthy()
		n.shimText = "[hypervisor]\nhuge_pages = \"2M\"\n"
		n.host.put("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", free)
		for _, f := range n.examine(t) {
			if f.Check == "memory" && f.Status != want {
				t.Errorf("%s free: %+v", free, f)
			}
		}
	}
}

func TestBroker(t *testing.T) {
	document := "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"cdh.toml\" = '''\n[kbc]\nname = \"cc_kbc\"\nurl = \"https://kbs.example:8080\"\n'''\n"
	if _, err := initdata.Parse([]byte(document)); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "initdata.toml")
	if err := os.WriteFile(path, []byte(document), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		answer error
		want   Status
	}{"answers": {nil, OK}, "silent": {errors.New("connection refused"), Warn}} {
		t.Run(name, func(t *testing.T) {
			n := healthy()
			n.shimText = "[initdata]\nfile = \"" + path + "\"\n"
			asked := ""
			n.Probes.Broker = func(_ context.Context, url, _ string) error {
				asked = url
				return test.answer
			}
			for _, f := range n.examine(t) {
				if f.Check == "key broker" && f.Status != test.want {
					t.Errorf("%+v", f)
				}
			}
			if asked != "https://kbs.example:8080" {
				t.Errorf("asked %q", asked)
			}
		})
	}
}

func TestTable(t *testing.T) {
	findings := []Finding{{Check: "qemu", Status: OK, Fact: "is there"}, {Check: "clock", Status: Warn, Fact: "is wrong", Cure: "set it"}}
	var plain, coloured strings.Builder
	if err := errors.Join(WriteTable(&plain, findings, false), WriteTable(&coloured, findings, true)); err != nil {
		t.Fatal(err)
	}
	want := "ok    qemu   is there\nwarn  clock  is wrong\n             -> set it\n\npods can run on this node, with limits: 1 ok, 1 warnings, 0 failures\n"
	if plain.String() != want {
		t.Errorf("got\n%s\nwant\n%s", plain.String(), want)
	}
	if strings.Contains(plain.String(), "\x1b") || !strings.Contains(coloured.String(), "\x1b[33mwarn") {
		t.Error("colour is for terminals")
	}
}
