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
    TableEntry table[OUTPUTS][TABLE_ENTRIES];  // the same for every channel
    ap_uint<32> saturations;
};

// One element of a tensor in the scratchpad.
inline Element &element(Machine &m, int address, int column) {
#pragma HLS INLINE
    return m.scratchpad[address + column / LANES][column % LANES];
}

// A packed tensor has two elements in each of these places, the first in the low bits.
inline Element read_element(Machine &m, int address, int column, bool packed) {
#pragma HLS INLINE
    const Element place = element(m, address, packed ? column / 2 : column);
    const ap_int<ELEMENT_WIDTH / 2> half = column % 2 ? place >> (ELEMENT_WIDTH / 2) : place;
    return packed ? Element(half) : place;
}

inline void write_element(Machine &m, int address, int column, bool packed, const Element &value) {
#pragma HLS INLINE
    Element &place = element(m, address, packed ? column / 2 : column);
    constexpr int HALF = ELEMENT_WIDTH / 2;
    if (!packed)
        place = value;
    else if (column % 2)
        place.range(ELEMENT_WIDTH - 1, HALF) = value;
    else
        place.range(HALF - 1, 0) = value;
}

}  // namespace patchloom
