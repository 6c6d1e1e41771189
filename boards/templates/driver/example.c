/* Both tasks of a Program on one input, again and again. Addresses are of a board of your own. */
#include "patchloom.h"

#ifndef REGISTERS
#define REGISTERS 0x90000000u
#define IMAGE 0x40000000u
#define IMAGE_BYTES 0x100000u /* the size of the file, which `patchloom inspect` tells, too */
#define INPUT 0x42000000u
#define INPUT_BYTES 0x10000u
#define OUTPUT 0x43000000u
#define OUTPUT_BYTES 0x10000u
#define LOOKS 100000000u
#endif

/* The first task that does not end well, or -1. */
int example_tasks(uint8_t tasks) {
  const patchloom_machine machine = {REGISTERS, IMAGE, IMAGE_BYTES, 1u << 28};
  patchloom_frame frame = {INPUT, OUTPUT, INPUT_BYTES, OUTPUT_BYTES, 0, 0};
  if (patchloom_identify(&machine) != PATCHLOOM_OK) return 0;
  for (frame.task = 0; frame.task < tasks; ++frame.task)
    if (patchloom_run(&machine, &frame, LOOKS) != PATCHLOOM_OK) return frame.task;
  return -1;
}

#ifndef EXAMPLE_ONLY
int main(void) {
  for (;;)
    if (example_tasks(2) >= 0) return 1;
}
#endif
