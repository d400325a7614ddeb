package attest

import (
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// tdReportRequest is struct tdx_report_req of the kernel's include/uapi/linux/tdx-guest.h.
type tdReportRequest struct {
	reportData [maxReportData]byte
	report     [tdReportSize]byte
}

// getReport is TDX_CMD_GET_REPORT0: _IOWR('T', 1, struct tdx_report_req).
const getReport = 3<<30 | unsafe.Sizeof(tdReportRequest{})<<16 | 'T'<<8 | 1

// readTDReport has the TDX module report what this guest is. The host has no part in it.
func readTDReport() ([]byte, error) {
	device, err := os.Open("/dev/tdx_guest")
	if err != nil {
		return nil, err
	}
	defer device.Close()
	request := &tdReportRequest{}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, device.Fd(), getReport, uintptr(unsafe.Pointer(request))) //nolint:gosec // the kernel fills it in at once
	runtime.KeepAlive(request)
	if errno != 0 {
		return nil, fmt.Errorf("ask /dev/tdx_guest: %w", errno)
	}
	return request.report[:], nil
}
