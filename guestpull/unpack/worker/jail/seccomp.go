package jail

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// allowed are the system calls of unpacking and of Go's runtime. All others fail with EPERM.
var allowed = []uint32{
	unix.SYS_READ, unix.SYS_WRITE, unix.SYS_CLOSE, unix.SYS_LSEEK, unix.SYS_PWRITE64, unix.SYS_FTRUNCATE, unix.SYS_FALLOCATE,
	unix.SYS_OPENAT, unix.SYS_OPENAT2, unix.SYS_MKDIRAT, unix.SYS_MKNODAT, unix.SYS_SYMLINKAT, unix.SYS_LINKAT, unix.SYS_UNLINKAT,
	unix.SYS_FSTAT, unix.SYS_NEWFSTATAT, unix.SYS_STATX, unix.SYS_READLINKAT, unix.SYS_GETDENTS64, unix.SYS_FCHDIR, unix.SYS_GETCWD,
	unix.SYS_FCHMOD, unix.SYS_FCHMODAT, unix.SYS_FCHOWN, unix.SYS_FCHOWNAT, unix.SYS_UTIMENSAT, unix.SYS_FSETXATTR, unix.SYS_LSETXATTR,
	unix.SYS_DUP, unix.SYS_FCNTL,
	unix.SYS_MUNMAP, unix.SYS_MADVISE, unix.SYS_BRK, unix.SYS_FUTEX, unix.SYS_NANOSLEEP, unix.SYS_CLOCK_GETTIME,
	unix.SYS_EPOLL_CREATE1, unix.SYS_EPOLL_CTL, unix.SYS_EPOLL_PWAIT, unix.SYS_EVENTFD2,
	unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGRETURN, unix.SYS_SIGALTSTACK, unix.SYS_RESTART_SYSCALL,
	unix.SYS_GETPID, unix.SYS_GETTID, unix.SYS_GETEUID, unix.SYS_GETEGID, unix.SYS_SCHED_YIELD, unix.SYS_SCHED_GETAFFINITY, unix.SYS_GETRANDOM, unix.SYS_RSEQ, unix.SYS_SET_ROBUST_LIST,
	unix.SYS_EXIT, unix.SYS_EXIT_GROUP,
}

// Offsets in struct seccomp_data; of arguments the lower half.
const (
	offNumber = 0
	offArch   = 4
	offArg0   = 16
	offArg2   = 32
)

const (
	loadWord = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
	ifEqual  = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	ifAny    = unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K
	answer   = unix.BPF_RET | unix.BPF_K

	refuse = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
)

// program is the filter for a process. Each rule jumps over what follows it only within itself, so that their order is free.
func program(pid uint32) []unix.SockFilter {
	prog := []unix.SockFilter{
		{Code: loadWord, K: offArch},
		{Code: ifEqual, K: arch, Jt: 1},
		{Code: answer, K: unix.SECCOMP_RET_KILL_PROCESS}, // numbers mean other calls there
		{Code: loadWord, K: offNumber},
	}
	for _, number := range allowed {
		prog = append(prog, unix.SockFilter{Code: ifEqual, K: number, Jf: 1}, unix.SockFilter{Code: answer, K: unix.SECCOMP_RET_ALLOW})
	}
	// when allows a call if the lower half of an argument passes the test, and refuses it otherwise.
	when := func(number, offset uint32, test unix.SockFilter) {
		prog = append(prog,
			unix.SockFilter{Code: ifEqual, K: number, Jf: 4},
			unix.SockFilter{Code: loadWord, K: offset},
			test,
			unix.SockFilter{Code: answer, K: unix.SECCOMP_RET_ALLOW},
			unix.SockFilter{Code: answer, K: refuse})
	}
	when(unix.SYS_CLONE, offArg0, unix.SockFilter{Code: ifAny, K: unix.CLONE_THREAD, Jf: 1}) // threads, no processes
	when(unix.SYS_TGKILL, offArg0, unix.SockFilter{Code: ifEqual, K: pid, Jf: 1})            // Go interrupts its own threads
	for _, number := range []uint32{unix.SYS_MMAP, unix.SYS_MPROTECT} {                      // no new code
		when(number, offArg2, unix.SockFilter{Code: ifAny, K: unix.PROT_EXEC, Jt: 1})
	}
	// Only so is the caller told to use the older call.
	prog = append(prog, unix.SockFilter{Code: ifEqual, K: unix.SYS_CLONE3, Jf: 1},
		unix.SockFilter{Code: answer, K: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)})
	return append(prog, unix.SockFilter{Code: answer, K: refuse})
}

// filterSyscalls lets only the calls of the program pass, on all threads.
func filterSyscalls() error {
	prog := program(uint32(unix.Getpid()))
	filter := unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}
	r, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&filter))) //nolint:gosec // the kernel copies the program
	if errno != 0 {
		return errno
	}
	if r != 0 {
		return fmt.Errorf("thread %d has another filter", r)
	}
	return nil
}
