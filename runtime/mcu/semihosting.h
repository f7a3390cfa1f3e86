/* Arm's semihosting, which RISC-V shares: calls that the debugger or emulator answers. */
#ifndef TBN_SEMIHOSTING_H
#define TBN_SEMIHOSTING_H

#include <stdint.h>

enum {
  SEMIHOSTING_OPEN = 0x01,
  SEMIHOSTING_WRITE0 = 0x04,
  SEMIHOSTING_WRITE = 0x05,
  SEMIHOSTING_READ = 0x06,
  SEMIHOSTING_EXIT_EXTENDED = 0x20
};

enum { SEMIHOSTING_MODE_READ_BINARY = 1, SEMIHOSTING_MODE_WRITE_BINARY = 5 };

#define SEMIHOSTING_APPLICATION_EXIT 0x20026u

/* `block` points to the operation's arguments, each of the size of a register. */
intptr_t tbn_semihosting(uintptr_t operation, const void* block);

#endif
