// The machine as a shared library: a call is a frame on a machine of its own, so that threads share nothing.
#include <memory>

#include "sequencer.hpp"

static_assert(sizeof(patchloom::Word) == patchloom::BEAT_BYTES, "memory must be an array of words");

// Returns an ERRORCODE; program, input and output are whole words.
extern "C" int patchloom_run(
    const void *program, const void *input, void *output, int task, int64_t *saturations) {
    using patchloom::Word;
    const auto machine = std::make_unique<patchloom::Machine>();
    const int error = patchloom::run(
        *machine, static_cast<const Word *>(program), static_cast<const Word *>(input), static_cast<Word *>(output), task);
    *saturations = machine->saturations.to_int64();
    return error;
}
