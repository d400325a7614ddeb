package integration

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coffer-project/coffer/integration/harness"
	"github.com/coffer-project/coffer/proto/initdata"
)

// vmFault is a runtime handler under which no pod can start.
type vmFault struct {
	// config changes the shim's configuration.
	config string
	// want are parts of the error that CRI reports: the cause, and where there is a guest, its last words.
	want []string
}

// vmFaults makes the files that the faulty handlers need in dir.
func vmFaults(t *testing.T, dir string, tools harness.Tools) map[string]vmFault {
	t.Helper()
	program := func(name, script string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
		return path
	}
	initrd := func(name, script string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, scriptedInitrd(t, tools, script), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	document := func(name, policy string) string {
		doc := initdata.Document{Version: initdata.Version, Algorithm: initdata.SHA384, Data: map[string]string{initdata.KeyPolicy: policy}}
		raw, err := doc.Encode()
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, name+".toml")
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	noKernel := program("kernel", "this is no kernel")
	return map[string]vmFault{
		"no-qemu": {
			config: "[hypervisor]\npath = \"/nonexistent/qemu\"\n",
			want:   []string{"QEMU is not installed at /nonexistent/qemu", "hypervisor.path"},
		},
		"qemu-exits": {
			config: fmt.Sprintf("[hypervisor]\naccelerator = \"tcg\"\npath = %q\n", program("qemu", "echo no warp core >&2; exit 3")),
			want:   []string{"exit status 3", "no warp core"},
		},
		"no-kernel": {
			config: fmt.Sprintf("[hypervisor]\naccelerator = \"tcg\"\nkernel = %q\n", noKernel),
			want:   []string{"hypervisor.kernel", noKernel + " is neither a vmlinux nor a bzImage"},
		},
		"kernel-missing": {
			config: "[hypervisor]\nkernel = \"/nonexistent/vmlinux\"\n",
			want:   []string{"/nonexistent/vmlinux: no such file", "hypervisor.kernel"},
		},
		"bad-config": {
			config: "[hypervisor]\nkernal = \"/boot/vmlinux\"\n[guest]\nboot_timeout = \"1ms\"\n",
			want:   []string{"hypervisor.kernal", "shim-bad-config.toml.d/10-test.toml"},
		},
		"no-scratch-folder": {
			config: "[scratch]\ndefault_mib = 64\ndir = \"/proc/scratch\"\n",
			want:   []string{"make scratch disk (scratch.dir)", "mkdir /proc/scratch"},
		},
		"scratch-too-large": {
			config: "[scratch]\ndefault_mib = 16777216\nmax_mib = 16777216\ndir = \"" + dir + "\"\n",
			want:   []string{"16777216 MiB are needed in " + dir, "are free there"},
		},
		"no-root": {
			config: "[hypervisor]\ninitrd = \"\"\n",
			want:   []string{"Kernel panic", "Unable to mount root fs"},
		},
		"init-exits": {
			config: fmt.Sprintf("[hypervisor]\ninitrd = %q\n", initrd("exits.cpio", "echo init: out of coffee; exit 5")),
			want:   []string{"init: out of coffee", "Kernel panic", "exitcode=0x00000500"},
		},
		"powers-off": {
			config: fmt.Sprintf("[hypervisor]\ninitrd = %q\n", initrd("off.cpio", "echo init: good night; /busybox poweroff -f")),
			want:   []string{"guest powered itself off", "init: good night"},
		},
		"no-agent": {
			config: fmt.Sprintf("[hypervisor]\ninitrd = %q\n[guest]\nboot_timeout = \"10s\"\n",
				initrd("silent.cpio", "echo init: thinking; exec /busybox sleep 100000")),
			want: []string{"agent did not answer within guest.boot_timeout of 10s", "init: thinking"},
		},
		"no-document": {
			// The real guest, which misses the document that the host has announced.
			config: "[hypervisor]\nkernel_params = [\"coffer.initdata_digest=sha384:" + strings.Repeat("0", 96) + "\"]\n",
			want:   []string{"blocked by policy: the pod's measured document (initdata) is refused", "no initdata disk, but the kernel command line asks for one"},
		},
		"bad-policy": {
			config: fmt.Sprintf("[initdata]\nfile = %q\n", document("bad-policy", "package agent_policy\n\nExecProcessRequest if http.send({})\n")),
			want:   []string{"blocked by policy: the pod's measured document (initdata) is refused", "line 3: undefined function http.send"},
		},
	}
}

// TestVMFaults asks for pods whose VM cannot come up, or does not last. The error must tell why, and nothing may be left
// behind. Together with pods that nothing happens to they are so many that a node which keeps a little of each would show it.
func TestVMFaults(t *testing.T) {
	t.Parallel()
	requireNode(t)
	tools, err := harness.FindTools()
	if err != nil {
		t.Fatal(err)
	}
	faults := vmFaults(t, t.TempDir(), tools)
	options := harness.Options{Handlers: map[string]string{}}
	for name, fault := range faults {
		options.Handlers[name] = fault.config
	}
	node := ownNode(t, options)
	all := newPodRow(t, node)
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), lifeBudget)
			defer cancel()
			_, err := node.CRI.RunPod(ctx, name, node.CRI.PodConfig(slug(t), nil))
			if err == nil {
				t.Fatal("the pod runs")
			}
			t.Log(err)
			for _, want := range fault.want {
				if n := strings.Count(err.Error(), want); n != 1 {
					t.Errorf("the error says %q %d times, want once", want, n)
				}
			}
			if strings.Contains(err.Error(), "\n") || strings.Count(err.Error(), "last console lines") > 1 {
				t.Error("the error has more than one line, or quotes the console more than once")
			}
			checkGone(t, node)
			all.gone++
		})
	}
	t.Run("death", func(t *testing.T) { testVMDeaths(t, all) })
	t.Run("nothing grows", all.nothingGrows)
}

// checkGone fails when a pod is known to containerd or has left something on the node.
func checkGone(t *testing.T, node *harness.Node) {
	t.Helper()
	list, err := node.CRI.Runtime.ListPodSandbox(t.Context(), &runtime.ListPodSandboxRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if len(list.Items) > 0 {
		t.Errorf("containerd still knows pods: %v", list.Items)
	}
	if err := node.Leftovers(); err != nil {
		t.Error(err)
	}
}

// scriptedInitrd is an initial file system whose init is a shell script.
func scriptedInitrd(t *testing.T, tools harness.Tools, script string) []byte {
	t.Helper()
	busybox, err := os.ReadFile(tools.Busybox)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	pad := func() { out.Write(make([]byte, -out.Len()&3)) }
	for _, file := range []struct {
		name string
		mode int
		body []byte
	}{
		{"busybox", 0o100755, busybox}, {"init", 0o100755, []byte("#!/busybox sh\n" + script + "\n")}, {"TRAILER!!!", 0, nil},
	} {
		// Inode, mode, owner, group, links, time, size, two devices of two numbers each, length of the name, checksum.
		fmt.Fprintf(&out, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
			0, file.mode, 0, 0, 1, 0, len(file.body), 0, 0, 0, 0, len(file.name)+1, 0)
		out.WriteString(file.name + "\x00")
		pad()
		out.Write(file.body)
		pad()
	}
	return out.Bytes()
}
