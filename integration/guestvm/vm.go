package guestvm

import (
	"bufio"
	"fmt"
	"io"
	"maps"
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

// Timeout is how long a VM may take for anything: emulated, on a busy machine.
const Timeout = 90 * time.Second

// Config is how a test's VM differs from the plain one.
type Config struct {
	Kernel    string   // file of the image; default vmlinux
	Params    []string // kernel parameters
	Disks     []string // files
	MemoryMiB int      // default 384
	// Serials name disks besides, by the files that they are.
	Serials map[string]string
	// MAC gives the guest a card with this address, on QEMU's user network. There it reaches this machine's loopback at
	// 10.0.2.2.
	MAC string
}

func (c Config) args(image, socket string) []string {
	kernel, memory := c.Kernel, c.MemoryMiB
	if kernel == "" {
		kernel = guestimage.VmlinuxName
	}
	if memory == 0 {
		memory = 384
	}
	args := []string{
		"-accel", "tcg", "-nodefaults", "-no-user-config", "-nographic", "-no-reboot", "-serial", "stdio",
		"-M", "q35", "-cpu", "max", "-smp", "2", "-m", fmt.Sprint(memory),
		"-kernel", filepath.Join(image, kernel), "-initrd", filepath.Join(image, guestimage.InitrdName),
		"-append", "console=ttyS0 quiet panic=-1 " + strings.Join(c.Params, " "),
		"-device", "virtio-serial-pci", "-chardev", "socket,id=c0,path=" + socket + ",server=on,wait=off",
		"-device", "virtserialport,chardev=c0,name=" + mux.PortName,
	}
	for i, disk := range c.Disks {
		args = append(args, "-drive", fmt.Sprintf("file=%s,format=raw,if=none,id=d%d,readonly=on", disk, i),
			"-device", fmt.Sprintf("virtio-blk-pci,drive=d%d", i))
	}
	for _, serial := range slices.Sorted(maps.Keys(c.Serials)) {
		args = append(args, "-drive", fmt.Sprintf("file=%s,format=raw,if=none,id=s-%s,readonly=on", c.Serials[serial], serial),
			"-device", fmt.Sprintf("virtio-blk-pci,drive=s-%s,serial=%s", serial, serial))
	}
	if c.MAC != "" {
		args = append(args, "-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0,mac="+c.MAC)
	}
	return args
}

// VM is a running guest.
type VM struct {
	socket string

	mu      sync.Mutex
	console []string
	changed chan struct{} // closed and replaced at each line
	exited  chan struct{}
}

// Start boots a guest; it ends with the test.
func Start(tb testing.TB, image *Image, c Config) *VM {
	tb.Helper()
	built := image.Dir(tb)
	dir, err := os.MkdirTemp("", "vm") //nolint:usetesting // the path of a unix socket has room for about a hundred bytes
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { os.RemoveAll(dir) })
	v := &VM{socket: filepath.Join(dir, "mux"), changed: make(chan struct{}), exited: make(chan struct{})}
	cmd := exec.CommandContext(tb.Context(), "qemu-system-x86_64", c.args(built, v.socket)...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	go v.watch(out, cmd)
	tb.Cleanup(func() {
		<-v.exited // the test's context is over by now, which ends the VM
		if tb.Failed() {
			tb.Logf("console:\n%s", strings.Join(v.Lines(), "\n"))
		}
	})
	return v
}

func (v *VM) watch(out io.Reader, cmd *exec.Cmd) {
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

// Lines returns what the console has said so far.
func (v *VM) Lines() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return append([]string(nil), v.console...)
}

// WaitCount waits until the console has want lines that contain text.
func (v *VM) WaitCount(tb testing.TB, text string, want int) {
	tb.Helper()
	v.wait(tb, fmt.Sprintf("%q %d times", text, want), func(lines []string) bool { return count(lines, text) >= want })
}

// Count tells how many lines of the console contain text.
func (v *VM) Count(text string) int { return count(v.Lines(), text) }

func count(lines []string, text string) (n int) {
	for _, line := range lines {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

// WaitLine returns the first line of the console that contains text.
func (v *VM) WaitLine(tb testing.TB, text string) (found string) {
	tb.Helper()
	v.wait(tb, fmt.Sprintf("%q", text), func(lines []string) bool {
		at := slices.IndexFunc(lines, func(line string) bool { return strings.Contains(line, text) })
		if at >= 0 {
			found = lines[at]
		}
		return at >= 0
	})
	return found
}

// wait calls done with the console at each new line until it is satisfied.
func (v *VM) wait(tb testing.TB, what string, done func(lines []string) bool) {
	tb.Helper()
	deadline := time.After(Timeout)
	for {
		v.mu.Lock()
		changed := v.changed
		v.mu.Unlock()
		if done(v.Lines()) {
			return
		}
		select {
		case <-changed:
		case <-v.exited:
			if done(v.Lines()) {
				return
			}
			tb.Fatalf("the VM ended before its console said %s", what)
		case <-deadline:
			tb.Fatalf("the console did not say %s in %v", what, Timeout)
		}
	}
}

// WaitExit waits for the guest to switch itself off and returns the last line that the guest wrote to its console; the
// kernel may add its own.
func (v *VM) WaitExit(tb testing.TB) string {
	tb.Helper()
	select {
	case <-v.exited:
	case <-time.After(Timeout):
		tb.Fatalf("the VM did not end in %v", Timeout)
	}
	for _, line := range slices.Backward(v.Lines()) {
		if strings.HasPrefix(line, "coffer-guest: ") {
			return line
		}
	}
	tb.Fatal("the guest wrote nothing")
	return ""
}

// Connect is a host that takes the control channel, until the test ends or it closes the connection.
func (v *VM) Connect(tb testing.TB) (net.Conn, *transport.Serial) {
	tb.Helper()
	conn := v.ConnectRaw(tb)
	host, err := transport.NewSerial(conn)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { host.Close() })
	return conn, host
}

// ConnectRaw is one that speaks for itself.
func (v *VM) ConnectRaw(tb testing.TB) net.Conn {
	tb.Helper()
	deadline := time.Now().Add(Timeout)
	for {
		conn, err := net.Dial("unix", v.socket)
		if err == nil {
			return conn
		}
		select {
		case <-v.exited:
			tb.Fatalf("connect to a VM that ended: %v", err)
		case <-time.After(10 * time.Millisecond): // QEMU tells nobody when it has made the socket
		}
		if time.Now().After(deadline) {
			tb.Fatal(err)
		}
	}
}
