package qemu

import (
	"net"
	"os"

	"github.com/coffer-project/coffer/shim/transport"
	"github.com/coffer-project/coffer/shim/vm"
	"github.com/coffer-project/coffer/shim/vm/qemu/qmp"
)

// wires are the connections between shim and QEMU: the shim's ends, and the files that QEMU inherits.
type wires struct {
	qmp, console net.Conn
	dialer       transport.Dialer
	cid          uint32 // of a vsock dialer

	qmpFile, consoleFile, channelFile *os.File

	// events carries, once, the session that says why the machine ends; nil when there is none.
	events chan *qmp.Client
}

func newWires(useVsock bool) (_ *wires, retErr error) {
	w := &wires{events: make(chan *qmp.Client, 1)}
	defer func() {
		if retErr != nil {
			w.closeTheirs()
			w.closeOurs()
		}
	}()
	var err error
	if w.qmp, w.qmpFile, err = pair("qmp"); err != nil {
		return nil, err
	}
	if w.console, w.consoleFile, err = pair("console"); err != nil {
		return nil, err
	}
	if useVsock {
		var dialer *transport.Vsock
		if dialer, w.channelFile, err = transport.NewVsock(); err != nil {
			return nil, err
		}
		w.dialer, w.cid = dialer, dialer.CID()
		return w, nil
	}
	var port net.Conn
	if port, w.channelFile, err = pair("port"); err != nil {
		return nil, err
	}
	serial, err := transport.NewSerial(port)
	if err != nil {
		return nil, err
	}
	w.dialer = serial
	return w, nil
}

// closeTheirs closes the shim's copies of QEMU's files.
func (w *wires) closeTheirs() {
	for _, file := range []*os.File{w.qmpFile, w.consoleFile, w.channelFile} {
		if file != nil {
			file.Close()
		}
	}
}

// closeOurs closes the shim's ends.
func (w *wires) closeOurs() {
	// There is nothing to do about a socket that cannot be closed.
	if w.qmp != nil {
		_ = w.qmp.Close()
	}
	if w.console != nil {
		_ = w.console.Close()
	}
	if w.dialer != nil {
		_ = w.dialer.Close()
	}
}

// wire completes the machine with the descriptors that QEMU inherits, in the order of files.
func (m machine) wire(config vm.Config, useVsock bool, w *wires) (_ machine, files []*os.File) {
	inherit := func(file *os.File) int {
		files = append(files, file)
		return firstFD + len(files) - 1
	}
	m.qmpFD, m.consoleFD = inherit(w.qmpFile), inherit(w.consoleFile)
	if useVsock {
		m.vhostFD, m.cid = inherit(w.channelFile), w.cid
	} else {
		m.portFD = inherit(w.channelFile)
	}
	for _, d := range config.Disks {
		fd := 0
		if d.File != nil {
			fd = inherit(d.File)
		}
		m.disks = append(m.disks, disk{Disk: d, fd: fd})
	}
	for _, card := range config.NICs {
		m.nics = append(m.nics, nic{fd: inherit(card.Tap), mac: card.MAC})
	}
	for _, d := range config.PCIDevices {
		if d.Claim != nil {
			inherit(d.Claim)
		}
	}
	return m, files
}
