"""From a lowered graph to C: import, kernels, schedules, memory plan, text."""
