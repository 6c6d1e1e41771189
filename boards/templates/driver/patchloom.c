#include "patchloom.h"

#define GET(name) PATCHLOOM_READ(machine->registers + PATCHLOOM_REG_##name)
#define OUR_EPOCH 0x504C4F4Du /* a reset makes it 0 */
#define SET(name, value) PATCHLOOM_WRITE(machine->registers + PATCHLOOM_REG_##name, (uint32_t)(value))

patchloom_result patchloom_identify(const patchloom_machine *machine) {
  uint32_t version;
  if (GET(MAGIC) != PATCHLOOM_MAGIC) return PATCHLOOM_NO_MACHINE;
  version = GET(VERSION);
  if (version >> 16 != PATCHLOOM_VERSION >> 16 || version < PATCHLOOM_VERSION) return PATCHLOOM_OTHER_VERSION;
  if (GET(FINGERPRINT) != PATCHLOOM_FINGERPRINT) return PATCHLOOM_OTHER_CONFIG;
  if (GET(DIGEST_0) != PATCHLOOM_DIGEST_0 || GET(DIGEST_1) != PATCHLOOM_DIGEST_1 ||
      GET(DIGEST_2) != PATCHLOOM_DIGEST_2 || GET(DIGEST_3) != PATCHLOOM_DIGEST_3)
    return PATCHLOOM_OTHER_BUILD;
  return PATCHLOOM_OK;
}

patchloom_result patchloom_reset(const patchloom_machine *machine, uint32_t looks) {
  SET(CONTROL, PATCHLOOM_CONTROL_SOFT_RESET);
  for (; looks; --looks)
    if (!(GET(STATUS) & (PATCHLOOM_STATUS_RESETTING | PATCHLOOM_STATUS_OWED))) return PATCHLOOM_OK;
  return PATCHLOOM_LATE;
}

static void set_program(const patchloom_machine *machine) {
  SET(PROGRAM_BASE_LO, machine->program);
  SET(PROGRAM_BASE_HI, machine->program >> 32);
  SET(PROGRAM_BYTES, machine->program_bytes);
}

patchloom_result patchloom_checksum(const patchloom_machine *machine, uint32_t looks, uint32_t *sum) {
  set_program(machine);
  PATCHLOOM_FLUSH();
  SET(CONTROL, PATCHLOOM_CONTROL_CHECKSUM);
  for (; looks; --looks) {
    uint32_t status = GET(STATUS);
    if (status & PATCHLOOM_STATUS_ERROR) return PATCHLOOM_FAILED;
    if (!(status & PATCHLOOM_STATUS_BUSY)) {
      *sum = GET(CHECKSUM);
      return PATCHLOOM_OK;
    }
  }
  return PATCHLOOM_LATE;
}

/* Whether the registers hold what the machine and the frame say. */
static int is_ours(const patchloom_machine *machine, const patchloom_frame *frame) {
  return GET(TASK) == frame->task && GET(WATCHDOG) == machine->watchdog && GET(EPOCH) == OUR_EPOCH &&
         GET(PROGRAM_BASE_LO) == (uint32_t)machine->program &&
         GET(PROGRAM_BASE_HI) == (uint32_t)(machine->program >> 32) && GET(PROGRAM_BYTES) == machine->program_bytes &&
         GET(INPUT_BASE_LO) == (uint32_t)frame->input && GET(INPUT_BASE_HI) == (uint32_t)(frame->input >> 32) &&
         GET(INPUT_BYTES) == frame->input_bytes && GET(OUTPUT_BASE_LO) == (uint32_t)frame->output &&
         GET(OUTPUT_BASE_HI) == (uint32_t)(frame->output >> 32) && GET(OUTPUT_BYTES) == frame->output_bytes;
}

patchloom_result patchloom_start(const patchloom_machine *machine, patchloom_frame *frame) {
  SET(IRQ_STATUS, PATCHLOOM_IRQ_STATUS_DONE | PATCHLOOM_IRQ_STATUS_ERROR);
  SET(TASK, frame->task);
  SET(WATCHDOG, machine->watchdog);
  SET(EPOCH, OUR_EPOCH);
  set_program(machine);
  SET(INPUT_BASE_LO, frame->input);
  SET(INPUT_BASE_HI, frame->input >> 32);
  SET(INPUT_BYTES, frame->input_bytes);
  SET(OUTPUT_BASE_LO, frame->output);
  SET(OUTPUT_BASE_HI, frame->output >> 32);
  SET(OUTPUT_BYTES, frame->output_bytes);
  frame->number = GET(FRAMES) + 1;
  PATCHLOOM_FLUSH();
  SET(CONTROL, PATCHLOOM_CONTROL_START | PATCHLOOM_CONTROL_IRQ_ENABLE);
  return is_ours(machine, frame) ? PATCHLOOM_OK : PATCHLOOM_STALE;
}

patchloom_result patchloom_poll(const patchloom_machine *machine, const patchloom_frame *frame) {
  if (!GET(IRQ_STATUS)) return PATCHLOOM_RUNNING;
  if (GET(STATUS) & PATCHLOOM_STATUS_ERROR) return PATCHLOOM_FAILED;
  if (GET(FRAMES) != frame->number || GET(EPOCH) != OUR_EPOCH) return PATCHLOOM_STALE;
  SET(IRQ_STATUS, PATCHLOOM_IRQ_STATUS_DONE);
  PATCHLOOM_INVALIDATE();
  return PATCHLOOM_OK;
}

patchloom_result patchloom_run(const patchloom_machine *machine, patchloom_frame *frame, uint32_t looks) {
  patchloom_result result;
  if (GET(IRQ_STATUS) || (GET(STATUS) & ~PATCHLOOM_STATUS_DONE)) {
    result = patchloom_reset(machine, looks);
    if (result != PATCHLOOM_OK) return result;
  }
  result = patchloom_start(machine, frame);
  if (result != PATCHLOOM_OK) return result;
  for (; looks; --looks) {
    result = patchloom_poll(machine, frame);
    if (result != PATCHLOOM_RUNNING) return result;
  }
  return PATCHLOOM_LATE;
}

uint64_t patchloom_cycles(const patchloom_machine *machine) {
  return GET(CYCLES_LO) | (uint64_t)GET(CYCLES_HI) << 32;
}

uint32_t patchloom_saturations(const patchloom_machine *machine) { return GET(SATURATIONS); }

patchloom_failure patchloom_why(const patchloom_machine *machine) {
  patchloom_failure failure;
  failure.code = GET(ERROR_CODE);
  failure.detail = GET(ERROR_DETAIL);
  failure.command = GET(COMMAND_INDEX);
  return failure;
}
