package forward

import (
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// The slots of the program's socket map.
const (
	slotIPv4 uint32 = iota
	slotIPv6
	slots
)

// Offsets in struct bpf_sk_lookup (include/uapi/linux/bpf.h), in bytes. Addresses are in network byte order.
const (
	offFamily   = 8
	offProtocol = 12
	offLocalIP4 = 40
	offLocalIP6 = 44
)

// steer makes the kernel hand new TCP connections to loopback in the namespace behind netns to the listeners, by
// address family, until the link that it returns is closed. It fails with errdefs.ErrFailedPrecondition when the kernel
// does not offer that.
func steer(netns *os.File, listeners map[uint32]*net.TCPListener) (_ link.Link, retErr error) {
	sockets, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: "coffer_forward", Type: ebpf.SockMap, KeySize: 4, ValueSize: 8, MaxEntries: slots,
	})
	if err != nil {
		return nil, unoffered("make socket map", err)
	}
	// The link holds the program and that the map; the map does not hold the sockets, which leave it when they close.
	defer sockets.Close()
	for slot, listener := range listeners {
		if err := put(sockets, slot, listener); err != nil {
			return nil, unoffered("put listener into socket map", err)
		}
	}
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "coffer_forward", Type: ebpf.SkLookup, AttachType: ebpf.AttachSkLookup,
		License: "Apache-2.0", Instructions: instructions(sockets.FD()),
	})
	if err != nil {
		return nil, unoffered("load program", err)
	}
	defer program.Close()
	attached, err := link.AttachNetNs(int(netns.Fd()), program)
	if err != nil {
		return nil, unoffered("attach program to network namespace", err)
	}
	return attached, nil
}

func put(sockets *ebpf.Map, slot uint32, listener *net.TCPListener) error {
	raw, err := listener.SyscallConn()
	if err != nil {
		return err
	}
	var putErr error
	err = raw.Control(func(fd uintptr) { putErr = sockets.Put(slot, uint64(fd)) })
	return errors.Join(err, putErr)
}

// unoffered adds what an admin can do to an error of bpf(2).
func unoffered(what string, err error) error {
	return fmt.Errorf("%s: %w (%w: the kernel must be Linux 5.9 or newer with CONFIG_BPF_SYSCALL, and the shim have CAP_BPF and "+
		"CAP_NET_ADMIN; before 5.11 set LimitMEMLOCK=infinity for containerd)", what, err, errdefs.ErrFailedPrecondition)
}

// instructions are the program: pass everything on that is not TCP to loopback, and assign the rest to the listener of
// its address family. Passing on is also what is left to do when there is no such listener, or when it is about to
// close: the kernel goes on with its own search, and refuses the connection.
func instructions(sockets int) asm.Instructions {
	const (
		pass, find, ipv6 = "pass", "find", "ipv6"
		// loopback4 is 127, the first byte of an IPv4 loopback address; loopback6 the last word of ::1.
		loopback4 = 127
		loopback6 = 1
	)
	loadIP6 := func(word int16) asm.Instruction { return asm.LoadMem(asm.R2, asm.R6, offLocalIP6+4*word, asm.Word) }
	return asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMem(asm.R2, asm.R6, offProtocol, asm.Word),
		asm.JNE.Imm(asm.R2, unix.IPPROTO_TCP, pass),
		asm.LoadMem(asm.R2, asm.R6, offFamily, asm.Word),
		asm.JEq.Imm(asm.R2, unix.AF_INET6, ipv6),
		asm.JNE.Imm(asm.R2, unix.AF_INET, pass),

		asm.LoadMem(asm.R2, asm.R6, offLocalIP4, asm.Word),
		asm.HostTo(asm.BE, asm.R2, asm.Word),
		asm.RSh.Imm(asm.R2, 24),
		asm.JNE.Imm(asm.R2, loopback4, pass),
		asm.StoreImm(asm.RFP, -4, int64(slotIPv4), asm.Word),
		asm.Ja.Label(find),

		loadIP6(0).WithSymbol(ipv6),
		asm.JNE.Imm(asm.R2, 0, pass),
		loadIP6(1),
		asm.JNE.Imm(asm.R2, 0, pass),
		loadIP6(2),
		asm.JNE.Imm(asm.R2, 0, pass),
		loadIP6(3),
		asm.HostTo(asm.BE, asm.R2, asm.Word),
		asm.JNE.Imm(asm.R2, loopback6, pass),
		asm.StoreImm(asm.RFP, -4, int64(slotIPv6), asm.Word),

		// The reference to the socket is released whether or not the kernel takes it.
		asm.LoadMapPtr(asm.R1, sockets).WithSymbol(find),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, pass),
		asm.Mov.Reg(asm.R7, asm.R0),
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.Mov.Reg(asm.R2, asm.R7),
		asm.Mov.Imm(asm.R3, 0),
		asm.FnSkAssign.Call(),
		asm.Mov.Reg(asm.R1, asm.R7),
		asm.FnSkRelease.Call(),

		asm.Mov.Imm(asm.R0, skPass).WithSymbol(pass),
		asm.Return(),
	}
}

// skPass is SK_PASS: go on with the socket that was assigned, or with the kernel's own search.
const skPass = 1
