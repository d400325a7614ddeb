// Command init is PID 1 of the driver's test guest: it listens on the serial port as a real guest does and obeys a few
// commands. Each stream to controlPort carries one line and gets its answer.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/hashicorp/yamux"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/proto/mux"
)

const (
	echoPort    = 1024
	controlPort = 1030
)

func main() {
	// PID 1 must not return: the kernel would panic, which is what "die" asks for.
	if err := run(); err != nil {
		fmt.Println("test init:", err)
	}
	os.Exit(1)
}

func run() error {
	for _, dir := range []string{"/dev", "/sys", "/proc"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := errors.Join(unix.Mount("dev", "/dev", "devtmpfs", 0, ""), unix.Mount("sys", "/sys", "sysfs", 0, ""),
		unix.Mount("proc", "/proc", "proc", 0, "")); err != nil {
		return err
	}
	modules, err := filepath.Glob("/modules/*.ko") // numbered in load order
	if err != nil {
		return err
	}
	for _, module := range modules {
		if err := load(module); err != nil {
			return fmt.Errorf("load %s: %w", module, err)
		}
	}
	fmt.Println("test init: up")
	port, err := openPort()
	if err != nil {
		return err
	}
	session, err := yamux.Server(port, mux.Config())
	if err != nil {
		return err
	}
	for {
		stream, err := session.AcceptStream()
		if err != nil {
			return err
		}
		go serve(stream)
	}
}

func load(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	return unix.FinitModule(int(file.Fd()), "", 0)
}

func openPort() (*os.File, error) {
	names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if text, err := os.ReadFile(name); err == nil && strings.TrimSpace(string(text)) == mux.PortName {
			return os.OpenFile(filepath.Join("/dev", filepath.Base(filepath.Dir(name))), os.O_RDWR|unix.O_NONBLOCK, 0)
		}
	}
	return nil, fmt.Errorf("no port %s among %v", mux.PortName, names)
}

func serve(stream net.Conn) {
	defer stream.Close()
	port, err := mux.ReadHeader(stream)
	if err != nil {
		return
	}
	known := port == echoPort || port == controlPort
	if mux.WriteReply(stream, known) != nil || !known {
		return
	}
	if port == echoPort {
		_, _ = io.Copy(stream, stream)
		return
	}
	line, err := bufio.NewReader(stream).ReadString('\n')
	if err != nil {
		return
	}
	answer, err := obey(strings.Fields(line))
	if err != nil {
		answer = "error: " + err.Error()
	}
	fmt.Fprintln(stream, answer)
}

func obey(words []string) (string, error) {
	switch words[0] {
	case "panic":
		return "", os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0)
	case "die":
		fmt.Println("test init: told to die")
		os.Exit(3)
	case "poweroff":
		fmt.Println("test init: told to power off")
		return "", unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	case "print":
		fmt.Println(strings.Join(words[1:], " "))
		return "printed", nil
	case "cmdline":
		text, err := os.ReadFile("/proc/cmdline")
		return strings.TrimSpace(string(text)), err
	case "net":
		return serveTCP(words[1], words[2])
	case "disk":
		return disk(words[1])
	case "write":
		return "written", write(words[1], words[2])
	}
	return "", fmt.Errorf("unknown command %q", words)
}

// serveTCP gives eth0 an IPv4 address and answers every connection to the port with the card's hardware address.
func serveTCP(address, port string) (string, error) {
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(socket)
	request, err := unix.NewIfreq("eth0")
	if err != nil {
		return "", err
	}
	for _, set := range []struct {
		number uint
		value  net.IP
	}{{unix.SIOCSIFADDR, net.ParseIP(address).To4()}, {unix.SIOCSIFNETMASK, net.IPv4(255, 255, 255, 0).To4()}} {
		if err := request.SetInet4Addr(set.value); err != nil {
			return "", err
		}
		if err := unix.IoctlIfreq(socket, set.number, request); err != nil {
			return "", err
		}
	}
	request.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(socket, unix.SIOCSIFFLAGS, request); err != nil {
		return "", err
	}
	mac, err := os.ReadFile("/sys/class/net/eth0/address")
	if err != nil {
		return "", err
	}
	listener, err := net.Listen("tcp4", net.JoinHostPort(address, port))
	if err != nil {
		return "", err
	}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Write(mac)
			conn.Close()
		}
	}()
	return "listening", nil
}

// disk returns the first 16 bytes of the disk with the serial, and whether it can be written.
func disk(serial string) (string, error) {
	name, err := findDisk(serial)
	if err != nil {
		return "", err
	}
	ro, err := os.ReadFile(filepath.Join("/sys/block", name, "ro"))
	if err != nil {
		return "", err
	}
	device, err := os.Open(filepath.Join("/dev", name))
	if err != nil {
		return "", err
	}
	defer device.Close()
	head := make([]byte, 16)
	_, err = io.ReadFull(device, head)
	return fmt.Sprintf("%s ro=%s", head, strings.TrimSpace(string(ro))), err
}

// write writes to the start of a disk, through to the host.
func write(serial, text string) error {
	name, err := findDisk(serial)
	if err != nil {
		return err
	}
	device, err := os.OpenFile(filepath.Join("/dev", name), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = device.WriteString(text)
	return errors.Join(err, device.Sync(), device.Close())
}

// findDisk returns the name of a disk.
func findDisk(serial string) (string, error) {
	files, err := filepath.Glob("/sys/block/vd*/serial")
	if err != nil {
		return "", err
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) {
			continue // it has just left
		}
		if err != nil {
			return "", err
		}
		if strings.TrimSpace(string(text)) == serial {
			return filepath.Base(filepath.Dir(file)), nil
		}
	}
	return "", fmt.Errorf("no disk %s", serial)
}
