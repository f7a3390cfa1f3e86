/* A board's services on the machine that compiles, so that one harness serves both. */
#define _POSIX_C_SOURCE 200809L

#include <fcntl.h>
#include <unistd.h>

#include "board.h"
#include "semihosting.h"

static intptr_t open_file(const char* name, uintptr_t mode) {
  if (mode == SEMIHOSTING_MODE_READ_BINARY) {
    return open(name, O_RDONLY);
  }
  return open(name, O_WRONLY | O_CREAT | O_TRUNC, 0600);
}

/* Returns the bytes that were not read, as semihosting does. */
static intptr_t read_all(int file, char* data, size_t size) {
  while (size > 0) {
    const ssize_t done = read(file, data, size);
    if (done <= 0) {
      break;
    }
    data += done;
    size -= (size_t)done;
  }
  return (intptr_t)size;
}

static intptr_t write_all(int file, const char* data, size_t size) {
  while (size > 0) {
    const ssize_t done = write(file, data, size);
    if (done <= 0) {
      break;
    }
    data += done;
    size -= (size_t)done;
  }
  return (intptr_t)size;
}

intptr_t tbn_semihosting(uintptr_t operation, const void* block) {
  const uintptr_t* arguments = block;
  switch (operation) {
    case SEMIHOSTING_OPEN:
      return open_file((const char*)arguments[0], arguments[1]);
    case SEMIHOSTING_READ:
      return read_all((int)arguments[0], (char*)arguments[1], arguments[2]);
    case SEMIHOSTING_WRITE:
      return write_all((int)arguments[0], (const char*)arguments[1], arguments[2]);
    default:
      return -1;
  }
}

/* An operating system's stack is not painted. */
uint32_t tbn_peak_stack(void) { return 0; }
