package gunzip

import "math/bits"

// Entries of tables: the length of the code in bits 0 to 3, the number of extra bits in 8 to 11, a value in 12 to 27, flags.
const (
	fLit = 1 << 31 // value is a literal byte
	fSub = 1 << 30 // value is where the table for longer codes begins, extra its size in bits
	fEnd = 1 << 29 // end of block
	fBad = 1 << 28 // no code
)

const (
	litBits, distBits = 11, 9
	// Codes have at most 15 bits. Each table for longer ones serves at least two symbols.
	litTable  = 1<<litBits + 144<<(15-litBits)
	distTable = 1<<distBits + 16<<(15-distBits)
)

// What length and distance codes stand for: a base, and how many bits that follow are added (RFC 1951, 3.2.5).
var lenBase = [...]uint16{3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258}
var lenExtra = [...]uint8{0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0}
var distBase = [...]uint16{1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513, 769, 1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577}
var distExtra = [...]uint8{0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13}

// litEntry is the entry of a literal or a length, without the length of its code.
func litEntry(sym int) uint32 {
	switch {
	case sym < 256:
		return fLit | uint32(sym)<<12
	case sym == 256:
		return fEnd
	case sym-257 < len(lenBase):
		return uint32(lenBase[sym-257])<<12 | uint32(lenExtra[sym-257])<<8
	}
	return fEnd | fBad
}

// distEntry is that of a distance.
func distEntry(sym int) uint32 {
	if sym < len(distBase) {
		return uint32(distBase[sym])<<12 | uint32(distExtra[sym])<<8
	}
	return fEnd | fBad
}

// build fills a table from the lengths of codes, for look-ups by the next root bits of the stream; longer codes are found
// in tables behind it. It is false for lengths that make no prefix code. As everywhere, the only incomplete codes are the
// empty one and that of one symbol with one bit.
func build(table []uint32, root uint, lens []uint8, entry func(int) uint32) bool {
	var count [16]int
	for _, l := range lens {
		count[l]++
	}
	count[0] = 0
	var next [16]uint32
	code, left, maxLen := uint32(0), 1, uint(0)
	for l := 1; l < 16; l++ {
		code = (code + uint32(count[l-1])) << 1
		next[l] = code
		left = left<<1 - count[l]
		if left < 0 {
			return false
		}
		if count[l] > 0 {
			maxLen = uint(l)
		}
	}
	for i := range table[:1<<root] {
		table[i] = fEnd | fBad | 1
	}
	if maxLen == 0 {
		return true
	}
	if left > 0 && (maxLen != 1 || count[1] != 1) {
		return false
	}
	free := 1 << root
	for sym, l := range lens {
		if l == 0 {
			continue
		}
		// Codes stand in the stream with their first bit lowest.
		rev := uint32(bits.Reverse16(uint16(next[l])) >> (16 - l))
		next[l]++
		e := entry(sym) | uint32(l)
		if uint(l) <= root {
			for i := rev; i < 1<<root; i += 1 << l {
				table[i] = e
			}
			continue
		}
		low := rev & (1<<root - 1)
		if table[low]&fSub == 0 {
			sub := maxLen - root
			if free+1<<sub > len(table) {
				return false
			}
			table[low] = fSub | uint32(free)<<12 | uint32(sub)<<8 | uint32(root)
			for i := range table[free : free+1<<sub] {
				table[free+i] = fEnd | fBad | uint32(root+1)
			}
			free += 1 << sub
		}
		s := table[low]
		sub := uint(s>>8) & 15
		base := s >> 12 & 0xffff
		for i := rev >> root; i < 1<<sub; i += 1 << (uint(l) - root) {
			table[base+i] = e
		}
	}
	return true
}
