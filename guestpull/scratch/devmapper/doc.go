// Package devmapper makes devices of the kernel's device mapper by its own calls, see the kernel's
// Documentation/admin-guide/device-mapper: no program such as dmsetup is needed.
package devmapper
