// What `post` says of an epilogue word: as it is, ReLU, or what is kept of it less what the loaded table says.
#pragma once

#include "fixed.hpp"
#include "machine.hpp"

namespace patchloom {

// Of codes from 0 to TABLE_LAST.
inline ap_int<TABLE_BASE_WIDTH> interpolate_entry(const TableEntry &entry, int fraction) {
#pragma HLS INLINE
    const ap_int<TABLE_BASE_WIDTH> base = entry.range(TABLE_BASE_WIDTH - 1, 0);
    const ap_int<TABLE_SLOPE_WIDTH> slope = entry.range(TABLE_ENTRY_BITS - 1, TABLE_BASE_WIDTH);
    constexpr int WIDTH = TABLE_SLOPE_WIDTH + TABLE_FRACTION_BITS + 1;
    const ap_int<WIDTH> rise = product<WIDTH>(slope, ap_uint<TABLE_FRACTION_BITS>(fraction));
    return base + shift_round(rise, TABLE_FRACTION_BITS);
}

inline EpilogueWord activate(const EpilogueWord &x, int post, const TableEntry (&table)[TABLE_ENTRIES]) {
#pragma HLS INLINE
    if (post == POST_NONE) return x;
    const bool dropped = x < 0 || post == POST_ALONE;
    const EpilogueWord kept = dropped ? EpilogueWord(0) : x;
    if (post == POST_RELU) return kept;
    const int word = x.to_int();
    const int place = post != POST_EVEN ? word + TABLE_MIDDLE : word < 0 ? -word : word;
    const int code = place < 0 ? 0 : place > TABLE_LAST ? TABLE_LAST : place;
    const int index = code >> TABLE_FRACTION_BITS, fraction = code & ((1 << TABLE_FRACTION_BITS) - 1);
    return kept - interpolate_entry(table[index], fraction);
}

}  // namespace patchloom
