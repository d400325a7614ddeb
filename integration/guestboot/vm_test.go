package guestboot

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coffer-project/coffer/owner/guestimage"
	"github.com/coffer-project/coffer/proto/mux"
	"github.com/coffer-project/coffer/shim/transport"
)

// bootTimeout is how long a VM may take for anything: emulated, on a busy machine.
const bootTimeout = 60 * time.Second

// image is the guest image that all tests boot, built once.
var image struct {
	once   sync.Once
	dir    string
	skip   string
	err    error
	remove func()
}

func TestMain(m *testing.M) {
	code := m.Run()
	if image.remove != nil {
		image.remove()
	}
	os.Exit(code)
}

// needImage builds the image, or skips with what is missing; where COFFER_REQUIRE is set, as make test does, a missing
// need is a failure.
func needImage(t *testing.T) string {
	t.Helper()
	if os.Getenv("COFFER_TEST_TIER") == "unit" {
		t.Skip("COFFER_TEST_TIER=unit: tests that need a VM are not run")
	}
	image.once.Do(buildImage)
	if image.err != nil {
		t.Fatal(image.err)
	}
	if image.skip != "" && os.Getenv("COFFER_REQUIRE") != "" {
		t.Fatal(image.skip)
	}
	if image.skip != "" {
		t.Skip(image.skip)
	}
	return image.dir
}

func buildImage() {
	cache := os.Getenv("COFFER_CACHE")
	if cache == "" {
		base, err := os.UserCacheDir()
		if err != nil {
			image.skip = fmt.Sprintf("no cache folder: %v", err)
			return
		}
		cache = filepath.Join(base, "coffer")
	}
	kernels, err := filepath.Glob(filepath.Join(cache, "kernel", "linux-image-*.deb"))
	if err != nil || len(kernels) == 0 {
		image.skip = fmt.Sprintf("no kernel package in %s/kernel: run make setup", cache)
		return
	}
	runc := filepath.Join(cache, "bin", "runc")
	if _, err := os.Stat(runc); err != nil {
		image.skip = fmt.Sprintf("no runc in %s/bin: run make setup", cache)
		return
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		image.skip = "qemu-system-x86_64 is not on PATH: run make setup"
		return
	}
	dir, err := os.MkdirTemp("", "guestboot")
	if err != nil {
		image.err = err
		return
	}
	image.dir, image.remove = dir, func() { os.RemoveAll(dir) }
	agent := filepath.Join(dir, "testinit")
	build := exec.Command("go", "build", "-ldflags", "-s -w", "-o", agent, "./testinit")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		image.err = fmt.Errorf("build testinit: %w: %s", err, out)
		return
	}
	_, _, image.err = guestimage.Build(context.Background(), guestimage.Inputs{Kernel: kernels[0], Runc: runc, Agent: agent}, dir)
}

// config is how a test's VM differs from the plain one.
type config struct {
	kernel string   // file of the image; default vmlinux
	params []string // kernel parameters
	disks  []string // files
}

// vm is a running guest.
type vm struct {
	socket string

	mu      sync.Mutex
	console []string
	changed chan struct{} // closed and replaced at each line
	exited  chan struct{}
}

// start boots a guest; it ends with the test.
func start(t *testing.T, c config) *vm {
	t.Helper()
	image := needImage(t)
	if c.kernel == "" {
		c.kernel = guestimage.VmlinuxName
	}
	// Not t.TempDir: the path of a unix socket has room for about a hundred bytes.
	dir, err := os.MkdirTemp("", "vm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	v := &vm{socket: filepath.Join(dir, "mux"), changed: make(chan struct{}), exited: make(chan struct{})}
	args := []string{
		"-accel", "tcg", "-nodefaults", "-no-user-config", "-nographic", "-no-reboot", "-serial", "stdio",
		"-M", "q35", "-cpu", "max", "-smp", "2", "-m", "384",
		"-kernel", filepath.Join(image, c.kernel), "-initrd", filepath.Join(image, guestimage.InitrdName),
		"-append", "console=ttyS0 quiet panic=-1 " + strings.Join(c.params, " "),
		"-device", "virtio-serial-pci", "-chardev", "socket,id=c0,path=" + v.socket + ",server=on,wait=off",
		"-device", "virtserialport,chardev=c0,name=" + mux.PortName,
	}
	for i, disk := range c.disks {
		args = append(args, "-drive", fmt.Sprintf("file=%s,format=raw,if=none,id=d%d,readonly=on", disk, i),
			"-device", fmt.Sprintf("virtio-blk-pci,drive=d%d", i))
	}
	cmd := exec.CommandContext(t.Context(), "qemu-system-x86_64", args...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go v.watch(out, cmd)
	t.Cleanup(func() {
		<-v.exited // t.Context is over by now, which ends the VM
		if t.Failed() {
			t.Logf("console:\n%s", strings.Join(v.lines(), "\n"))
		}
	})
	return v
}

func (v *vm) watch(out io.Reader, cmd *exec.Cmd) {
	defer close(v.exited)
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		line := lines.Text()
		// The first line follows what the firmware wrote without an end of line.
		if at := strings.Index(line, "coffer-guest: "); at > 0 {
			line = line[at:]
		}
		v.mu.Lock()
		v.console = append(v.console, strings.TrimRight(line, "\r"))
		close(v.changed)
		v.changed = make(chan struct{})
		v.mu.Unlock()
	}
	_ = cmd.Wait() // its status says nothing about the guest
}

func (v *vm) lines() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return append([]string(nil), v.console...)
}

// waitCount waits until the console has want lines that contain text.
func (v *vm) waitCount(t *testing.T, text string, want int) {
	t.Helper()
	v.wait(t, fmt.Sprintf("%q %d times", text, want), func(lines []string) bool { return count(lines, text) >= want })
}

func count(lines []string, text string) (n int) {
	for _, line := range lines {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

// waitLine returns the first line of the console that contains text.
func (v *vm) waitLine(t *testing.T, text string) (found string) {
	t.Helper()
	v.wait(t, fmt.Sprintf("%q", text), func(lines []string) bool {
		at := slices.IndexFunc(lines, func(line string) bool { return strings.Contains(line, text) })
		if at >= 0 {
			found = lines[at]
		}
		return at >= 0
	})
	return found
}

// wait calls done with the console at each new line until it is satisfied.
func (v *vm) wait(t *testing.T, what string, done func(lines []string) bool) {
	t.Helper()
	deadline := time.After(bootTimeout)
	for {
		v.mu.Lock()
		changed := v.changed
		v.mu.Unlock()
		if done(v.lines()) {
			return
		}
		select {
		case <-changed:
		case <-v.exited:
			t.Fatalf("the VM ended before its console said %s", what)
		case <-deadline:
			t.Fatalf("the console did not say %s in %v", what, bootTimeout)
		}
	}
}

// waitExit waits for the guest to switch itself off and returns the last line that the guest wrote to its console; the
// kernel may add its own.
func (v *vm) waitExit(t *testing.T) string {
	t.Helper()
	select {
	case <-v.exited:
	case <-time.After(bootTimeout):
		t.Fatalf("the VM did not end in %v", bootTimeout)
	}
	for _, line := range slices.Backward(v.lines()) {
		if strings.HasPrefix(line, "coffer-guest: ") {
			return line
		}
	}
	t.Fatal("the guest wrote nothing")
	return ""
}

// connect is a host that takes the control channel, until the test ends or it closes the connection.
func (v *vm) connect(t *testing.T) (net.Conn, *transport.Serial) {
	t.Helper()
	conn := v.connectRaw(t)
	host, err := transport.NewSerial(conn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { host.Close() })
	return conn, host
}

func (v *vm) connectRaw(t *testing.T) net.Conn {
	t.Helper()
	deadline := time.Now().Add(bootTimeout)
	for {
		conn, err := net.Dial("unix", v.socket)
		if err == nil {
			return conn
		}
		select {
		case <-v.exited:
			t.Fatalf("connect to a VM that ended: %v", err)
		case <-time.After(10 * time.Millisecond): // QEMU tells nobody when it has made the socket
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// ask sends testinit a command and returns its answer.
func ask(t *testing.T, host *transport.Serial, command string) string {
	t.Helper()
	answer, err := tryAsk(t, host, command)
	if err != nil {
		t.Fatalf("%s: %v", command, err)
	}
	return answer
}

func tryAsk(t *testing.T, host *transport.Serial, command string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bootTimeout)
	defer cancel()
	conn, err := host.Dial(ctx, 2)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if _, err := fmt.Fprintln(conn, command); err != nil {
		return "", err
	}
	answer, err := io.ReadAll(conn)
	if err == nil && len(answer) == 0 {
		err = errors.New("empty answer")
	}
	return string(answer), err
}
