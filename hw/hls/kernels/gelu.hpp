// What `post` says of an epilogue word: as it is, ReLU, or GELU = ReLU minus a table of the magnitude.
#pragma once

#include "fixed.hpp"

namespace patchloom {

inline EpilogueWord activate(const EpilogueWord &x, int post) {
#pragma HLS INLINE
    if (post == POST_NONE) return x;
    const EpilogueWord relu = x < 0 ? EpilogueWord(0) : x;
    if (post != POST_GELU) return relu;
    const ap_uint<EPILOGUE_WIDTH> magnitude = x < 0 ? ap_int<EPILOGUE_WIDTH + 1>(-x) : ap_int<EPILOGUE_WIDTH + 1>(x);
    constexpr int TABLE_BITS = GELU_INDEX_BITS + GELU_FRACTION_BITS;
    if (magnitude >> TABLE_BITS) return relu;  // beyond the table, the delta is zero
    const int index = magnitude.range(TABLE_BITS - 1, GELU_FRACTION_BITS);
    const int fraction = magnitude.range(GELU_FRACTION_BITS - 1, 0);
    return relu - interpolate<GELU_FRACTION_BITS>(GELU_BASE, GELU_SLOPE, index, fraction);
}

}  // namespace patchloom
