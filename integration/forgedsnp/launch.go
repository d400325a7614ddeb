package forgedsnp

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/guestpull/attest"
	"github.com/coffer-project/coffer/owner/appraise/snp/snptest"
	"github.com/coffer-project/coffer/owner/measure"
	"github.com/coffer-project/coffer/proto/initdata"
)

// launchArg is the first argument of a program that is to launch a VM.
const launchArg = "forged-snp-launch"

// paramInitdata is the kernel parameter by which the shim announces initdata to guests without a TEE.
const paramInitdata = "coffer.initdata_digest="

// launch is what the launcher asks: the arguments of QEMU, and the descriptor on which it will have this connection.
type launch struct {
	Args []string
	FD   int
}

// launched is the answer: the arguments to run QEMU with.
type launched struct {
	Args  []string
	Error string
}

// Intercept is to be called first by programs that use Start: when this process was started as the launcher, it becomes QEMU.
func Intercept() {
	if len(os.Args) < 4 || os.Args[1] != launchArg {
		return
	}
	err := become(os.Args[2], os.Args[3], os.Args[4:])
	fmt.Fprintln(os.Stderr, "forged SNP host:", err)
	os.Exit(1)
}

// become replaces this process by QEMU. It returns if that fails.
func become(socket, qemu string, args []string) error {
	if !slices.Contains(args, "-initrd") { // a question about QEMU itself, or a trial of KVM
		return syscall.Exec(qemu, append([]string{qemu}, args...), os.Environ()) //nolint:gosec // becoming another program is the launcher's purpose
	}
	conn, err := net.Dial("unix", socket) //nolint:gosec // the script that Start wrote names it
	if err != nil {
		return err
	}
	file, err := conn.(*net.UnixConn).File() // a copy, which no poller knows
	if err != nil {
		return err
	}
	fd := int(file.Fd())
	question, err := json.Marshal(launch{Args: args, FD: fd})
	if err != nil {
		return err
	}
	if _, err := conn.Write(append(question, '\n')); err != nil {
		return err
	}
	line, err := bufio.NewReader(conn).ReadBytes('\n') // the host says no more before it is asked again
	if err != nil {
		return err
	}
	var answer launched
	if err := json.Unmarshal(line, &answer); err != nil {
		return err
	}
	if answer.Error != "" {
		return errors.New(answer.Error)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0); err != nil {
		return fmt.Errorf("hand the connection on: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return err
	}
	return syscall.Exec(qemu, append([]string{qemu}, answer.Args...), os.Environ()) //nolint:gosec // likewise
}

// launch measures what QEMU is about to load and returns what reports on the VM say.
func (h *Host) launch(request launch) (snptest.Report, launched) {
	report, args, err := h.measure(slices.Clone(request.Args))
	if err != nil {
		return report, launched{Error: err.Error()}
	}
	return report, launched{Args: append(args,
		"-device", "virtio-serial-pci,disable-legacy=on,id=forgedbus",
		"-chardev", fmt.Sprintf("socket,id=forged,fd=%d", request.FD),
		"-device", "virtserialport,bus=forgedbus.0,chardev=forged,name="+attest.ForgerPort,
	)}
}

func (h *Host) measure(args []string) (report snptest.Report, _ []string, err error) {
	guest := measure.SNPGuest{Features: measure.SNPActive}
	if guest.CPU, err = measure.CPUSignature(CPU); err != nil {
		return report, nil, err
	}
	line := -1
	files := map[string]*[]byte{"-kernel": &guest.Kernel, "-initrd": &guest.Initrd}
	for i := 0; i+1 < len(args); i++ {
		switch value := args[i+1]; args[i] {
		case "-kernel", "-initrd":
			if *files[args[i]], err = os.ReadFile(value); err != nil {
				return report, nil, err
			}
		case "-append":
			line = i + 1
		case "-smp":
			count, _, _ := strings.Cut(value, ",")
			if guest.VCPUs, err = strconv.Atoi(count); err != nil {
				return report, nil, fmt.Errorf("number of processors %q: %w", value, err)
			}
		}
	}
	if line < 0 {
		return report, nil, errors.New("QEMU is given no command line for the kernel")
	}
	if args[line], report.HostData, err = takeDigest(args[line]); err != nil {
		return report, nil, err
	}
	guest.Cmdline = args[line]
	if guest.Firmware, err = os.ReadFile(h.Firmware); err != nil {
		return report, nil, err
	}
	report.Measurement, err = guest.Digest()
	return report, args, err
}

// takeDigest takes the digest of initdata off a command line. Without one HOST_DATA is zero.
func takeDigest(line string) (rest string, hostData []byte, err error) {
	words := strings.Fields(line)
	at := slices.IndexFunc(words, func(word string) bool { return strings.HasPrefix(word, paramInitdata) })
	if at < 0 {
		return line, nil, nil
	}
	_, digits, _ := strings.Cut(words[at], ":")
	digest, err := hex.DecodeString(digits)
	if err != nil {
		return "", nil, fmt.Errorf("kernel parameter %s: %w", words[at], err)
	}
	return strings.Join(slices.Delete(words, at, at+1), " "), initdata.Fit(digest, initdata.SNPHostData), nil
}
