/* A driver of the Patchloom machine for programs without an operating system: C99 or C++, no heap, no library.
 *
 * Whoever uses it puts a Program's image, unchanged (the file image-*.bin of its folder), into memory that the machine
 * reaches, and beside it an input and an output region; Program.tasks says their sizes and what lies where in them.
 * Where the processor caches that memory, PATCHLOOM_FLUSH and PATCHLOOM_INVALIDATE must be defined.
 */
#ifndef PATCHLOOM_H
#define PATCHLOOM_H

#include <stdint.h>

#include "patchloom_regs.h"

/* How a register is reached. Define both for a bus that is not mapped. */
#ifndef PATCHLOOM_READ
#define PATCHLOOM_READ(address) (*(volatile uint32_t *)(address))
#define PATCHLOOM_WRITE(address, value) (*(volatile uint32_t *)(address) = (value))
#endif

/* All that the processor has written, to where the machine reads; and back before the processor reads a result. */
#ifndef PATCHLOOM_FLUSH
#define PATCHLOOM_FLUSH() __sync_synchronize()
#define PATCHLOOM_INVALIDATE() __sync_synchronize()
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
  uintptr_t registers; /* their address, as the processor sees it */
  uint64_t program;    /* address of the image, as the machine sees it: a multiple of the bus beat, as all of these */
  uint32_t program_bytes; /* size of the image */
  uint32_t watchdog;   /* cycles of one command after which the machine gives up; 0: never */
} patchloom_machine;

typedef struct {
  uint64_t input, output;             /* regions, as the machine sees them */
  uint32_t input_bytes, output_bytes; /* their sizes, of this task: beyond them nothing is read or written */
  uint8_t task;                       /* its number in the Program */
  uint32_t number;                    /* among the machine's frames: patchloom_start says */
} patchloom_frame;

typedef enum {
  PATCHLOOM_OK,
  PATCHLOOM_RUNNING,       /* not yet done */
  PATCHLOOM_NO_MACHINE,    /* the register `magic` holds something else */
  PATCHLOOM_OTHER_VERSION, /* of registers or command set than patchloom_regs.h */
  PATCHLOOM_OTHER_CONFIG,  /* than the one that patchloom_regs.h, and so the Program, was made for */
  PATCHLOOM_OTHER_BUILD,   /* the digest is not that of patchloom_regs.h */
  PATCHLOOM_LATE,          /* not done after as many looks as were allowed */
  PATCHLOOM_FAILED,        /* patchloom_why says why; the next frame begins with a reset */
  PATCHLOOM_STALE          /* the registers do not say that this frame was done: do not believe its output */
} patchloom_result;

typedef struct {
  uint32_t code; /* PATCHLOOM_ERROR_CODE_* */
  uint32_t detail;
  uint32_t command; /* its position in the task */
} patchloom_failure;

/* Whether this is the machine that patchloom_regs.h was written with. To be asked once. */
patchloom_result patchloom_identify(const patchloom_machine *machine);

/* A soft reset: whatever the machine did, it is idle afterwards. `looks` are reads of the status, at most. */
patchloom_result patchloom_reset(const patchloom_machine *machine, uint32_t looks);

/* CRC-32, as zlib's, of what lies at `program`, computed by the machine, which must be idle. */
patchloom_result patchloom_checksum(const patchloom_machine *machine, uint32_t looks, uint32_t *sum);

/* Begin a frame. The machine must be idle; its interrupt line rises when the frame has ended. STALE if the registers do
 * not hold what was written to them. */
patchloom_result patchloom_start(const patchloom_machine *machine, patchloom_frame *frame);

/* One look: RUNNING, or how the frame has ended. After OK the output region may be read, and another frame begin. */
patchloom_result patchloom_poll(const patchloom_machine *machine, const patchloom_frame *frame);

/* One frame: a reset if the machine is not idle, start, looks until it has ended. */
patchloom_result patchloom_run(const patchloom_machine *machine, patchloom_frame *frame, uint32_t looks);

/* Of the frame that has ended last. */
uint64_t patchloom_cycles(const patchloom_machine *machine);
uint32_t patchloom_saturations(const patchloom_machine *machine);
patchloom_failure patchloom_why(const patchloom_machine *machine);

#ifdef __cplusplus
}
#endif

#endif
