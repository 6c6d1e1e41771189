// One frame on a machine that stays where it is: what a design instantiates.
#pragma once

#include "sequencer.hpp"

namespace patchloom {

// Returns an ERRORCODE and counts the values that did not fit their format.
inline int frame(const Word *program, const Word *input, Word *output, int task, unsigned *saturations) {
    static Machine machine;
#pragma HLS ARRAY_PARTITION variable=machine.scratchpad type=cyclic factor=BANKS dim=1
#pragma HLS ARRAY_RESHAPE variable=machine.scratchpad type=complete dim=2
#pragma HLS ARRAY_RESHAPE variable=machine.sums type=complete dim=2
#pragma HLS ARRAY_PARTITION variable=machine.queued type=complete
#pragma HLS ARRAY_PARTITION variable=machine.table type=complete dim=1
    const int error = run(machine, program, input, output, task);
    *saturations = machine.saturations;
    return error;
}

}  // namespace patchloom
