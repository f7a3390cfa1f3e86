/* What start-up code and main share on every board. */
#ifndef TBN_BOARD_H
#define TBN_BOARD_H

/* What the start-up code fills the stack with. */
#define TBN_STACK_PAINT 0xA5C3A5C3

/* Exit status after a fault: this plus the number of the exception or the cause of the trap. */
#define TBN_FAULT 64

#ifndef __ASSEMBLER__
#include <stdint.h>

/* Ends the program. The emulator leaves with the low 8 bits of `status`. */
void tbn_exit(int status);

/* Writes a string, zero at its end, to the debugger's console: the standard error of QEMU. */
void tbn_print(const char* text);

/* The most bytes of stack since the start; UINT32_MAX if the stack has met the static data. */
uint32_t tbn_peak_stack(void);
#endif

#endif
