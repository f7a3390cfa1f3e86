/* Runs a model on sets of inputs from a file. */
#ifndef TBN_HARNESS_H
#define TBN_HARNESS_H

#include <stdint.h>

typedef struct {
  void* data;
  uint32_t size;
} tbn_tensor_t;

/* Written for each model: its tensors in order, and a call of it with all of them. */
extern const tbn_tensor_t tbn_inputs[];
extern const tbn_tensor_t tbn_outputs[];
extern const uint32_t tbn_input_count;
extern const uint32_t tbn_output_count;
int32_t tbn_run_model(void);

/* A counting emulator counts from a call of the first to a call of the second. */
void tbn_start_counting(void);
void tbn_stop_counting(void);

#endif
