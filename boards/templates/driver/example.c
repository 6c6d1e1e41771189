/* Both tasks of a Program on one input, again and again. Addresses are of a board of your own. */
#include "patchloom.h"

#ifndef REGISTERS
#define REGISTERS 0x90000000u
#define IMAGE 0x40000000u
#define INPUT 0x42000000u
#define OUTPUT 0x43000000u
#define LOOKS 100000000u
#endif

/* The first task that does not end well, or -1. */
int example_tasks(uint8_t tasks) {
  const patchloom_machine machine = {REGISTERS, IMAGE, 1u << 20};
  patchloom_frame frame = {INPUT, OUTPUT, 0};
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
