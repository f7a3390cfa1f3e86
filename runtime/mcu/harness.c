#include "harness.h"

#include "board.h"
#include "semihosting.h"

/* Exit statuses, apart from those of an emulator that does not start. */
enum { DONE = 0, NO_FILES = 32, SHORT_INPUT = 33, MODEL_FAILED = 34, OUTPUT_FAILED = 35 };

static const char inputs_file[] = "inputs.bin";
static const char outputs_file[] = "outputs.bin";

static intptr_t open_file(const char* name, uint32_t length, uintptr_t mode) {
  const uintptr_t block[] = {(uintptr_t)name, mode, length};
  return tbn_semihosting(SEMIHOSTING_OPEN, block);
}

/* Reads or writes; 1 if all bytes went. */
static int transfer(uintptr_t operation, intptr_t file, const void* data, uint32_t size) {
  const uintptr_t block[] = {(uintptr_t)file, (uintptr_t)data, size};
  return size == 0 || tbn_semihosting(operation, block) == 0;
}

static int transfer_all(uintptr_t operation, intptr_t file, const tbn_tensor_t* tensors,
                        uint32_t count) {
  for (uint32_t i = 0; i < count; i++) {
    if (!transfer(operation, file, tensors[i].data, tensors[i].size)) {
      return 0;
    }
  }
  return 1;
}

static int run_set(intptr_t inputs, intptr_t outputs) {
  if (!transfer_all(SEMIHOSTING_READ, inputs, tbn_inputs, tbn_input_count)) {
    return SHORT_INPUT;
  }
  tbn_start_counting();
  const int32_t status = tbn_run_model();
  tbn_stop_counting();
  if (status != 0) {
    return MODEL_FAILED;
  }
  if (!transfer_all(SEMIHOSTING_WRITE, outputs, tbn_outputs, tbn_output_count)) {
    return OUTPUT_FAILED;
  }
  return DONE;
}

/* The empty statements keep a compiler from seeing that the calls do nothing. */
__attribute__((noinline)) void tbn_start_counting(void) { __asm__ volatile("" ::: "memory"); }
__attribute__((noinline)) void tbn_stop_counting(void) { __asm__ volatile("" ::: "memory"); }

/* inputs.bin: how many sets (uint32), then each set's inputs. outputs.bin: each set's outputs, then
   the peak of the stack (uint32). */
int main(void) {
  const intptr_t inputs =
      open_file(inputs_file, sizeof inputs_file - 1, SEMIHOSTING_MODE_READ_BINARY);
  const intptr_t outputs =
      open_file(outputs_file, sizeof outputs_file - 1, SEMIHOSTING_MODE_WRITE_BINARY);
  uint32_t sets = 0;
  if (inputs < 0 || outputs < 0 || !transfer(SEMIHOSTING_READ, inputs, &sets, sizeof sets)) {
    return NO_FILES;
  }
  for (uint32_t set = 0; set < sets; set++) {
    const int status = run_set(inputs, outputs);
    if (status != DONE) {
      return status;
    }
  }
  const uint32_t stack = tbn_peak_stack();
  return transfer(SEMIHOSTING_WRITE, outputs, &stack, sizeof stack) ? DONE : OUTPUT_FAILED;
}
