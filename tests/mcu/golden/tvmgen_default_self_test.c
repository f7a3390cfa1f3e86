#include "tvmgen_default_self_test.h"

#include <stdint.h>

#include "tvmgen_default.h"

static const float input0[8] = {
  1.5f, -2.0f, 0.100000001f, 7.0f, 0.25f, 3.0f, -0.200000003f, 7.0f
};

static const float expected0[4] = {
  1.25f, 0.0f, 0.300000012f, 0.0f
};
static float actual0[4];

static int differs(float actual, float expected, float tolerance) {
  const float difference = actual - expected;
  if (expected != expected) {
    return actual == actual;
  }
  return actual != expected && !(difference <= tolerance && -difference <= tolerance);
}

int32_t tvmgen_default_self_test(void) {
  struct tvmgen_default_inputs inputs;
  struct tvmgen_default_outputs outputs;
  int32_t result;
  int32_t i;
  inputs.x = (void*)input0; /* the model only reads it */
  outputs.y = actual0;
  result = tvmgen_default_run(&inputs, &outputs);
  if (result != 0) {
    return result;
  }
  for (i = 0; i < 4; ++i) {
    result += differs(actual0[i], expected0[i], 1.24999997e-05f);
  }
  return result;
}
