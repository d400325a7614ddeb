package integration

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coffer-project/coffer/integration/harness"
	"github.com/coffer-project/coffer/integration/registrytest"
)

// scratchMark is what workloads and images have that the host must not find. It is long enough to be met by no chance.
const scratchMark = "the host must never read this sentence of a workload"

// TestScratch gives pods an encrypted disk of the host's for what does not fit into their memory.
func TestScratch(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "scratch")
	handler := func(protection string) string {
		return fmt.Sprintf("[hypervisor]\nenable_annotations = [\"scratch_mib\", \"default_memory\"]\n"+
			"[scratch]\ndefault_mib = 300\ndir = %q\nprotection = %q\n", dir, protection)
	}
	node := ownNode(t, harness.Options{Handlers: map[string]string{
		"encrypted": handler("encrypted"), "authenticated": handler("authenticated"),
	}})
	registry := openShop(t, node)
	base := busyboxLayer(t, node)
	// Of 256 MiB, a guest with a disk gives images of less than some 10 MiB to its memory.
	large := registrytest.NewImage([]registrytest.Layer{base, registrytest.NewLayer(registrytest.Plain,
		registrytest.Entry{Name: "large", Body: strings.Repeat(scratchMark+"\n", 16*mib/len(scratchMark))})}, nil, nil)
	images := scratchImages{
		large: registry.put("large", large),
		// Packed it is small, so that it starts out in memory.
		swelling: registry.put("swelling", registrytest.NewImage([]registrytest.Layer{base, zeroes(t, 1, 64*mib)}, nil, nil)),
		tooLarge: registry.put("toolarge", registrytest.NewImage([]registrytest.Layer{base, zeroes(t, 1, 400*mib)}, nil, nil)),
	}
	for _, name := range []string{"encrypted", "authenticated"} {
		t.Run(name, func(t *testing.T) { testScratch(t, node, registry, name, dir, images) })
	}
}

// scratchImages are references of images: one that is large, one that is only when it is unpacked, one that fits nowhere.
type scratchImages struct{ large, swelling, tooLarge string }

func testScratch(t *testing.T, node *harness.Node, registry *shop, handler, dir string, images scratchImages) {
	annotations, err := node.PodAnnotations(harness.Guest{PlainRegistries: []string{registry.host()}})
	if err != nil {
		t.Fatal(err)
	}
	annotations["io.katacontainers.config.hypervisor.default_memory"] = "256"
	l := newLab(t, node, handler, images.large, func(config *runtime.PodSandboxConfig) {
		config.Annotations = annotations
	})
	k := newKubelet(t)
	memory, disk := k.emptyDir(t, "memory", 0, 4*mebibyte), k.emptyDir(t, "disk", 2000, 0)
	c := l.start(t, bind(map[string]string{"/memory": memory, "/disk": disk}), "/bin/sleep", "100000")
	file := scratchFile(t, node, l.pod, dir)
	defer file.Close()

	t.Run("use", func(t *testing.T) {
		l.ask(t, c,
			[2]string{"wc -c < /large", fmt.Sprint(16 * mib / len(scratchMark) * (len(scratchMark) + 1))},
			[2]string{"df -k / | tail -1 | { read -r _ size _; test $size -gt 262144 && echo large; }", "large"},
			[2]string{"df -k /disk | tail -1 | { read -r _ size _; test $size -gt 262144 && echo large; }", "large"},
			[2]string{"df -k /memory | tail -1 | { read -r _ size _; echo $size; }", "4096"},
			[2]string{"stat -c '%a %g' /disk", "2777 2000"},
			[2]string{"for i in 1 2; do dd if=/dev/zero of=/disk/$i bs=1M count=8 2>/dev/null; done; cat /disk/? | wc -c", fmt.Sprint(16 * mib)},
			[2]string{"cp /bin/busybox /disk/busybox && chmod 4755 /disk/busybox && /disk/busybox echo runs", "runs"},
			[2]string{"rm /disk/?; printf '%s' '" + scratchMark + "' > /root-file && cp /root-file /disk/file && sync && echo written", "written"},
		)
	})
	t.Run("nothing to read", func(t *testing.T) {
		if bytes.Contains(content(t, file), []byte(scratchMark)) {
			t.Error("the host finds the workload's text on the disk")
		}
		entries, err := os.ReadDir(dir)
		if err != nil || len(entries) != 0 {
			t.Errorf("the host has %v, %v", entries, err)
		}
	})
	t.Run("moves", func(t *testing.T) {
		l.image = images.swelling
		if err := l.pod.Pull(l.ctx(t), images.swelling); err != nil {
			t.Fatal(err)
		}
		if got := l.sh(t, l.sleeper(t, nil), "wc -c < /zero0"); got != fmt.Sprint(64*mib) {
			t.Errorf("the file has %s bytes", got)
		}
	})
	t.Run("too large", func(t *testing.T) {
		if err := l.pod.Pull(l.ctx(t), images.tooLarge); err != nil {
			t.Fatal(err)
		}
		_, refused, fault := try(t.Context(), node, l.pod, "toolarge", images.tooLarge, "/bin/true")
		if fault != nil {
			t.Fatal(fault)
		}
		wantRefused(t, refused, "scratch disk", "io.katacontainers.config.hypervisor.scratch_mib", "layer does not fit")
	})
	t.Run("changed by the host", func(t *testing.T) { testScratchChanged(t, l, c, file, handler) })
	t.Run("gone", func(t *testing.T) {
		pid, err := node.ShimPID(l.pod)
		if err != nil {
			t.Fatal(err)
		}
		vm, err := node.VMPID(l.pod)
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		l.wait(t, c)
		awaitEnd(t, l, vm)
		awaitNotReady(t, l)
		l.remove(t)
		checkGone(t, node)
		if links := openFiles(t, dir); len(links) != 0 {
			t.Errorf("files %v are still open", links)
		}
	})
}

// testScratchChanged has the host change all that it can find on the disk. What programs then read is wrong, or cannot be read
// at all; the guest goes on.
func testScratchChanged(t *testing.T, l *lab, c *harness.Container, file *os.File, protection string) {
	// Past the page cache: what is in memory the host cannot change.
	const read = "dd if=/disk/victim bs=4096 iflag=direct 2>/dev/null"
	l.sh(t, c, "cat /bin/busybox /bin/busybox > /disk/victim && sync")
	before := l.sh(t, c, read+" | md5sum; "+read+" > /dev/null && echo whole")
	flip(t, file)
	after := l.sh(t, c, read+" | md5sum; "+read+" > /dev/null && echo whole || echo failed")
	if !strings.HasSuffix(before, "whole") || strings.HasPrefix(after, strings.Fields(before)[0]) {
		t.Errorf("the file was %q and is %q", before, after)
	}
	if want := map[string]string{"encrypted": "whole", "authenticated": "failed"}[protection]; !strings.HasSuffix(after, want) {
		t.Errorf("reading says %q, want %s", after, want)
	}
	// The guest answers; whether a program can still be started is another question.
	if report := l.stats(t, c); report.GetMemory() == nil {
		t.Errorf("the guest says %v of a container", report)
	}
}

// flip changes a bit in each block of the disk that is in use.
func flip(t *testing.T, file *os.File) {
	t.Helper()
	extents(t, file, func(start, end int64) {
		block := make([]byte, 4096)
		for at := start; at < end; at += int64(len(block)) {
			if _, err := file.ReadAt(block, at); err != nil {
				t.Fatal(err)
			}
			block[100] ^= 1
			if _, err := file.WriteAt(block, at); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// scratchFile opens the file behind a pod's disk as an administrator of the node would: through QEMU's own handle, since it
// has no name.
func scratchFile(t *testing.T, node *harness.Node, pod *harness.Pod, dir string) *os.File {
	t.Helper()
	vm, err := node.VMPID(pod)
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range openFiles(t, dir) {
		if strings.HasPrefix(link, fmt.Sprintf("/proc/%d/", vm)) {
			file, err := os.OpenFile(link, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			return file
		}
	}
	t.Fatalf("the VM %d has no file of %s open", vm, dir)
	return nil
}

// openFiles are the handles that other processes have of files below dir.
func openFiles(t *testing.T, dir string) (links []string) {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range all {
		target, err := os.Readlink(link)
		if err == nil && strings.HasPrefix(target, dir+"/") && !strings.HasPrefix(link, fmt.Sprintf("/proc/%d/", os.Getpid())) {
			links = append(links, link)
		}
	}
	return links
}

// extents visits the parts of a sparse file that are no holes.
func extents(t *testing.T, file *os.File, visit func(start, end int64)) {
	t.Helper()
	for end := int64(0); ; {
		start, err := unix.Seek(int(file.Fd()), end, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return // no more data
		}
		if err == nil {
			end, err = unix.Seek(int(file.Fd()), start, unix.SEEK_HOLE)
		}
		if err != nil {
			t.Fatal(err)
		}
		visit(start, end)
	}
}

// content is what a sparse file holds, without its holes.
func content(t *testing.T, file *os.File) []byte {
	t.Helper()
	var all bytes.Buffer
	extents(t, file, func(start, end int64) {
		if _, err := io.Copy(&all, io.NewSectionReader(file, start, end-start)); err != nil {
			t.Fatal(err)
		}
	})
	if all.Len() < 16*mib {
		t.Errorf("the disk holds %d bytes, less than the image", all.Len())
	}
	return all.Bytes()
}
