package hostfiles

// Volume is a folder of the host and its copy.
type Volume struct {
	HostPath, GuestPath string
}
