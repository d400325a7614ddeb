package digestmac

import "golang.org/x/sys/cpu"

// supported reports whether the processor has the SHA extensions, whose bit x/sys/cpu does not tell.
var supported = cpu.X86.HasSSSE3 && cpu.X86.HasSSE41 && features()&(1<<29) != 0

// features returns EBX of CPUID leaf 7, subleaf 0; 0 where there is no such leaf.
//
//go:noescape
func features() uint32

// blocks adds the whole blocks of p to two states.
//
//go:noescape
func blocks(a, b *state, p []byte)

// blocks3 is blocks, and adds to a third state as many bytes as p has from q on.
//
//go:noescape
func blocks3(a, b *state, p []byte, c *state, q *byte)
