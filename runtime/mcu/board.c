#include "board.h"

#include "semihosting.h"

/* From the linker script: where the stack may reach down to, and where it starts. */
extern const uint32_t tbn_stack_limit[];
extern const uint32_t tbn_stack_top[];

void tbn_exit(int status) {
  const uintptr_t block[] = {SEMIHOSTING_APPLICATION_EXIT, (uintptr_t)status};
  (void)tbn_semihosting(SEMIHOSTING_EXIT_EXTENDED, block);
  for (;;) {
  }
}

void tbn_print(const char* text) { (void)tbn_semihosting(SEMIHOSTING_WRITE0, text); }

uint32_t tbn_peak_stack(void) {
  const uint32_t* word = tbn_stack_limit;
  while (word < tbn_stack_top && *word == TBN_STACK_PAINT) {
    word++;
  }
  if (word == tbn_stack_limit) {
    return UINT32_MAX;
  }
  return (uint32_t)((uintptr_t)tbn_stack_top - (uintptr_t)word);
}

/* Newlib's mathematical functions set errno. Its own keeps the state of a whole C library. */
int* __errno(void);
int* __errno(void) {
  static int value;
  return &value;
}
