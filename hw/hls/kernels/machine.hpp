// All that the machine remembers between commands.
#pragma once

#include "types.hpp"

namespace patchloom {

// One token in an expert's queue.
struct Entry {
    ap_uint<16> token;
    Factor score;
    bool first;  // no expert of a lower number has the token
};

struct Machine {
    Element scratchpad[SCRATCHPAD_CHUNKS][LANES];
    Total total[STATISTICS_ROWS];
    Squares squares[STATISTICS_ROWS];
    Element maximum[MAX_ROWS];        // of the last command that gathered it
    Element running_maximum[MAX_ROWS];  // of the present command
    RowSum row_sum[MAX_ROWS];
    Sum sums[MAX_ROWS][OUTPUTS];
    Entry queue[MAX_EXPERTS][MAX_ROWS];
    ap_uint<16> queued[MAX_EXPERTS];
    ap_uint<32> saturations;
};

// One element of a tensor in the scratchpad.
inline Element &element(Machine &m, int address, int column) {
#pragma HLS INLINE
    return m.scratchpad[address + column / LANES][column % LANES];
}

}  // namespace patchloom
