package qemu

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/coffer-project/coffer/shim/vm/qemu/qmp"
)

// quotedLines is how much of the console an error message carries; Console has the rest.
const quotedLines = 12

// ending collects what QEMU said about the end of the machine. Only the goroutine that receives events writes it.
type ending struct {
	panicked bool
	// reason is that of the first SHUTDOWN event: guest-shutdown, guest-reset, guest-panic, host-qmp-quit, ...
	reason string
}

func (e *ending) take(event qmp.Event) {
	switch event.Name {
	case "GUEST_PANICKED":
		e.panicked = true
	case "SHUTDOWN":
		var data struct{ Reason string }
		if json.Unmarshal(event.Data, &data) == nil && e.reason == "" {
			e.reason = data.Reason
		}
	}
}

// explain makes the error of a VM that ended by itself. A guest that powers itself off is an error, too: the shim alone
// decides when a VM ends, and a guest that cannot go on powers off.
func (e *ending) explain(p *process, console *lines) error {
	said := console.telling(quotedLines)
	var text string
	switch {
	case e.panicked || e.reason == "guest-panic":
		text = "guest kernel panicked"
	case e.reason == "guest-reset":
		// How a kernel ends that panics before it knows the panic device.
		text = "guest reset the machine, as a kernel does after a panic"
	case e.reason == "guest-shutdown":
		text = "guest powered itself off"
	case e.reason == "host-signal":
		text = "QEMU was told to end by a signal"
	case e.reason != "":
		text = fmt.Sprintf("QEMU shut down (%s) and %s", clean(e.reason), p.lastWords())
	default:
		text = "QEMU " + p.lastWords()
	}
	if len(said) > 0 {
		text += "; last console lines: " + quote(said)
	}
	return errors.New(text)
}
