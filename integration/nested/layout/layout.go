// Package layout is what the two halves of the test with nested machines agree on: where files are in the inner machine, and
// what it says at its end.
package layout

// Folders and files of the machine.
const (
	// Cache, Bin and Guest are what the harness calls COFFER_CACHE, COFFER_BIN and COFFER_GUEST.
	Cache = "/opt/cache"
	Bin   = "/opt/coffer/bin"
	Guest = "/opt/coffer/guest"
	// Init is the machine's first program.
	Init = "/sbin/init"
	// Temp is where the node's folder with all its logs is.
	Temp = "/tmp"
)

// Ports of the machine: the kernel writes to the first, the tests to the second.
const (
	Console  = "ttyS0"
	Progress = "/dev/ttyS1"
)

// Last lines of the tests. The reason follows Failure.
const (
	Success = "nested: success"
	Failure = "nested: failure: "
)

// The disk that is passed through.
const (
	// Serial is its serial number.
	Serial = "passed"
	// MarkerVariable is a kernel parameter, and so a variable of PID 1, that says what the disk begins with. It is new in every
	// run, and so is AnswerVariable's value, which a container in the VM is to write AnswerOffset bytes from the beginning.
	MarkerVariable = "NESTED_MARKER"
	AnswerVariable = "NESTED_ANSWER"
	AnswerOffset   = 4096
)
