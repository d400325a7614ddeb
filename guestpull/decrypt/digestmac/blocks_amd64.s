#include "textflag.h"

// Two SHA-256 states take the same message. The names of the steps are those of Intel's "SHA Extensions" and FIPS 180-4.
//
//	X0       schedule words plus constants, which SHA256RNDS2 takes from there
//	X1, X2   first state: ABEF, CDGH      X9, X10   second state
//	X3-X6    the last 16 words of the schedule, four in each
//	X7       scratch                      X8        mask that turns words around
//	X11-X14  both states before the block

// Four rounds of both states with the words W and the constants at OFF.
#define ROUNDS(W, OFF) \
	MOVO        W, X0; \
	PADDD       OFF(AX), X0; \
	SHA256RNDS2 X0, X1, X2; \
	SHA256RNDS2 X0, X9, X10; \
	PSHUFD      $0x0e, X0, X0; \
	SHA256RNDS2 X0, X2, X1; \
	SHA256RNDS2 X0, X10, X9

// Words of the message.
#define LOAD(OFF, W) \
	MOVOU  OFF(SI), W; \
	PSHUFB X8, W

// The next four words, in place of the oldest, on which EXTEND1 was done before: NEXT from CUR and PREV.
#define EXTEND2(CUR, PREV, NEXT) \
	MOVO       CUR, X7; \
	PALIGNR    $4, PREV, X7; \
	PADDD      X7, NEXT; \
	SHA256MSG2 CUR, NEXT

#define EXTEND1(CUR, PREV) \
	SHA256MSG1 CUR, PREV

// func blocks(a, b *state, p []byte)
TEXT ·blocks(SB), NOSPLIT, $0-40
	MOVQ a+0(FP), DI
	MOVQ b+8(FP), DX
	MOVQ p_base+16(FP), SI
	MOVQ p_len+24(FP), CX
	SHRQ $6, CX
	JZ   done
	LEAQ constants<>(SB), AX
	MOVOU mask<>(SB), X8
	MOVOU 0(DI), X1
	MOVOU 16(DI), X2
	MOVOU 0(DX), X9
	MOVOU 16(DX), X10

block:
	MOVO X1, X11
	MOVO X2, X12
	MOVO X9, X13
	MOVO X10, X14

	LOAD(0, X3)
	ROUNDS(X3, 0)
	LOAD(16, X4)
	ROUNDS(X4, 16)
	EXTEND1(X4, X3)
	LOAD(32, X5)
	ROUNDS(X5, 32)
	EXTEND1(X5, X4)
	LOAD(48, X6)
	EXTEND2(X6, X5, X3)
	ROUNDS(X6, 48)
	EXTEND1(X6, X5)

	EXTEND2(X3, X6, X4)
	ROUNDS(X3, 64)
	EXTEND1(X3, X6)
	EXTEND2(X4, X3, X5)
	ROUNDS(X4, 80)
	EXTEND1(X4, X3)
	EXTEND2(X5, X4, X6)
	ROUNDS(X5, 96)
	EXTEND1(X5, X4)
	EXTEND2(X6, X5, X3)
	ROUNDS(X6, 112)
	EXTEND1(X6, X5)

	EXTEND2(X3, X6, X4)
	ROUNDS(X3, 128)
	EXTEND1(X3, X6)
	EXTEND2(X4, X3, X5)
	ROUNDS(X4, 144)
	EXTEND1(X4, X3)
	EXTEND2(X5, X4, X6)
	ROUNDS(X5, 160)
	EXTEND1(X5, X4)
	EXTEND2(X6, X5, X3)
	ROUNDS(X6, 176)
	EXTEND1(X6, X5)

	EXTEND2(X3, X6, X4)
	ROUNDS(X3, 192)
	EXTEND1(X3, X6)
	EXTEND2(X4, X3, X5)
	ROUNDS(X4, 208)
	EXTEND2(X5, X4, X6)
	ROUNDS(X5, 224)
	ROUNDS(X6, 240)

	PADDD X11, X1
	PADDD X12, X2
	PADDD X13, X9
	PADDD X14, X10
	ADDQ  $64, SI
	DECQ  CX
	JNZ   block

	MOVOU X1, 0(DI)
	MOVOU X2, 16(DI)
	MOVOU X9, 0(DX)
	MOVOU X10, 16(DX)

done:
	RET


// Three states, the third with a message of its own, at R8.
//
//	X1, X2, X9, X10 and X3-X6 as above     X15, X8  third state     X11-X14  the last 16 words of its schedule

#define ROUNDS3(W, V, OFF) \
	MOVO        W, X0; \
	PADDD       OFF(AX), X0; \
	SHA256RNDS2 X0, X1, X2; \
	SHA256RNDS2 X0, X9, X10; \
	PSHUFD      $0x0e, X0, X0; \
	SHA256RNDS2 X0, X2, X1; \
	SHA256RNDS2 X0, X10, X9; \
	MOVO        V, X0; \
	PADDD       OFF(AX), X0; \
	SHA256RNDS2 X0, X15, X8; \
	PSHUFD      $0x0e, X0, X0; \
	SHA256RNDS2 X0, X8, X15

#define LOAD3(OFF, W, V) \
	MOVOU  OFF(SI), W; \
	PSHUFB mask<>(SB), W; \
	MOVOU  OFF(R8), V; \
	PSHUFB mask<>(SB), V

// func blocks3(a, b *state, p []byte, c *state, q *byte)
TEXT ·blocks3(SB), NOSPLIT, $96-56
	MOVQ a+0(FP), DI
	MOVQ b+8(FP), DX
	MOVQ p_base+16(FP), SI
	MOVQ p_len+24(FP), CX
	MOVQ c+40(FP), BX
	MOVQ q+48(FP), R8
	SHRQ $6, CX
	JZ   done
	LEAQ constants<>(SB), AX
	MOVOU 0(DI), X1
	MOVOU 16(DI), X2
	MOVOU 0(DX), X9
	MOVOU 16(DX), X10
	MOVOU 0(BX), X15
	MOVOU 16(BX), X8

block:
	MOVOU X1, 0(SP)
	MOVOU X2, 16(SP)
	MOVOU X9, 32(SP)
	MOVOU X10, 48(SP)
	MOVOU X15, 64(SP)
	MOVOU X8, 80(SP)

	LOAD3(0, X3, X11)
	ROUNDS3(X3, X11, 0)
	LOAD3(16, X4, X12)
	ROUNDS3(X4, X12, 16)
	EXTEND1(X4, X3)
	EXTEND1(X12, X11)
	LOAD3(32, X5, X13)
	ROUNDS3(X5, X13, 32)
	EXTEND1(X5, X4)
	EXTEND1(X13, X12)
	LOAD3(48, X6, X14)
	EXTEND2(X6, X5, X3)
	EXTEND2(X14, X13, X11)
	ROUNDS3(X6, X14, 48)
	EXTEND1(X6, X5)
	EXTEND1(X14, X13)
	EXTEND2(X3, X6, X4)
	EXTEND2(X11, X14, X12)
	ROUNDS3(X3, X11, 64)
	EXTEND1(X3, X6)
	EXTEND1(X11, X14)
	EXTEND2(X4, X3, X5)
	EXTEND2(X12, X11, X13)
	ROUNDS3(X4, X12, 80)
	EXTEND1(X4, X3)
	EXTEND1(X12, X11)
	EXTEND2(X5, X4, X6)
	EXTEND2(X13, X12, X14)
	ROUNDS3(X5, X13, 96)
	EXTEND1(X5, X4)
	EXTEND1(X13, X12)
	EXTEND2(X6, X5, X3)
	EXTEND2(X14, X13, X11)
	ROUNDS3(X6, X14, 112)
	EXTEND1(X6, X5)
	EXTEND1(X14, X13)
	EXTEND2(X3, X6, X4)
	EXTEND2(X11, X14, X12)
	ROUNDS3(X3, X11, 128)
	EXTEND1(X3, X6)
	EXTEND1(X11, X14)
	EXTEND2(X4, X3, X5)
	EXTEND2(X12, X11, X13)
	ROUNDS3(X4, X12, 144)
	EXTEND1(X4, X3)
	EXTEND1(X12, X11)
	EXTEND2(X5, X4, X6)
	EXTEND2(X13, X12, X14)
	ROUNDS3(X5, X13, 160)
	EXTEND1(X5, X4)
	EXTEND1(X13, X12)
	EXTEND2(X6, X5, X3)
	EXTEND2(X14, X13, X11)
	ROUNDS3(X6, X14, 176)
	EXTEND1(X6, X5)
	EXTEND1(X14, X13)
	EXTEND2(X3, X6, X4)
	EXTEND2(X11, X14, X12)
	ROUNDS3(X3, X11, 192)
	EXTEND1(X3, X6)
	EXTEND1(X11, X14)
	EXTEND2(X4, X3, X5)
	EXTEND2(X12, X11, X13)
	ROUNDS3(X4, X12, 208)
	EXTEND2(X5, X4, X6)
	EXTEND2(X13, X12, X14)
	ROUNDS3(X5, X13, 224)
	ROUNDS3(X6, X14, 240)

	MOVOU 0(SP), X0
	PADDD X0, X1
	MOVOU 16(SP), X0
	PADDD X0, X2
	MOVOU 32(SP), X0
	PADDD X0, X9
	MOVOU 48(SP), X0
	PADDD X0, X10
	MOVOU 64(SP), X0
	PADDD X0, X15
	MOVOU 80(SP), X0
	PADDD X0, X8
	ADDQ $64, SI
	ADDQ $64, R8
	DECQ CX
	JNZ  block

	MOVOU X1, 0(DI)
	MOVOU X2, 16(DI)
	MOVOU X9, 0(DX)
	MOVOU X10, 16(DX)
	MOVOU X15, 0(BX)
	MOVOU X8, 16(BX)

done:
	RET

// func features() uint32
TEXT ·features(SB), NOSPLIT, $0-4
	XORL  AX, AX
	CPUID
	CMPL  AX, $7
	JLT   none
	MOVL  $7, AX
	XORL  CX, CX
	CPUID
	MOVL  BX, ret+0(FP)
	RET

none:
	MOVL $0, ret+0(FP)
	RET

DATA mask<>+0(SB)/8, $0x0405060700010203
DATA mask<>+8(SB)/8, $0x0c0d0e0f08090a0b
GLOBL mask<>(SB), RODATA|NOPTR, $16

// FIPS 180-4, 4.2.2, two words in each line.
DATA constants<>+0(SB)/8, $0x71374491428a2f98
DATA constants<>+8(SB)/8, $0xe9b5dba5b5c0fbcf
DATA constants<>+16(SB)/8, $0x59f111f13956c25b
DATA constants<>+24(SB)/8, $0xab1c5ed5923f82a4
DATA constants<>+32(SB)/8, $0x12835b01d807aa98
DATA constants<>+40(SB)/8, $0x550c7dc3243185be
DATA constants<>+48(SB)/8, $0x80deb1fe72be5d74
DATA constants<>+56(SB)/8, $0xc19bf1749bdc06a7
DATA constants<>+64(SB)/8, $0xefbe4786e49b69c1
DATA constants<>+72(SB)/8, $0x240ca1cc0fc19dc6
DATA constants<>+80(SB)/8, $0x4a7484aa2de92c6f
DATA constants<>+88(SB)/8, $0x76f988da5cb0a9dc
DATA constants<>+96(SB)/8, $0xa831c66d983e5152
DATA constants<>+104(SB)/8, $0xbf597fc7b00327c8
DATA constants<>+112(SB)/8, $0xd5a79147c6e00bf3
DATA constants<>+120(SB)/8, $0x1429296706ca6351
DATA constants<>+128(SB)/8, $0x2e1b213827b70a85
DATA constants<>+136(SB)/8, $0x53380d134d2c6dfc
DATA constants<>+144(SB)/8, $0x766a0abb650a7354
DATA constants<>+152(SB)/8, $0x92722c8581c2c92e
DATA constants<>+160(SB)/8, $0xa81a664ba2bfe8a1
DATA constants<>+168(SB)/8, $0xc76c51a3c24b8b70
DATA constants<>+176(SB)/8, $0xd6990624d192e819
DATA constants<>+184(SB)/8, $0x106aa070f40e3585
DATA constants<>+192(SB)/8, $0x1e376c0819a4c116
DATA constants<>+200(SB)/8, $0x34b0bcb52748774c
DATA constants<>+208(SB)/8, $0x4ed8aa4a391c0cb3
DATA constants<>+216(SB)/8, $0x682e6ff35b9cca4f
DATA constants<>+224(SB)/8, $0x78a5636f748f82ee
DATA constants<>+232(SB)/8, $0x8cc7020884c87814
DATA constants<>+240(SB)/8, $0xa4506ceb90befffa
DATA constants<>+248(SB)/8, $0xc67178f2bef9a3f7
GLOBL constants<>(SB), RODATA|NOPTR, $256
