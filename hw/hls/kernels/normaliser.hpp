// Layer normalisation of a token on its way into the array, from the row's exact integer sums.
#pragma once

#include "machine.hpp"
#include "fixed.hpp"

namespace patchloom {

// (x - mean) * scale >> shift
struct Normaliser {
    Mean mean;
    ap_uint<FACTOR_WIDTH + 1> scale;
    int shift;
};

inline Normaliser normaliser_of(const Machine &m, const Command &c, int row) {
#pragma HLS INLINE
    const Total total = c.prologue == PROLOGUE_RMS ? Total(0) : m.total[c.a_statistics + row];
    const Squares squares = m.squares[c.a_statistics + row];
    const ap_int<VARIANCE_WIDTH + 2> squared = product<VARIANCE_WIDTH + 2>(total, total);
    const ap_int<VARIANCE_WIDTH + 2> scaled = product<VARIANCE_WIDTH + 2>(c.depth, squares);
    const ap_uint<VARIANCE_WIDTH> variance = scaled - squared + c.epsilon;
    const Scaled root = rsqrt(variance);
    const int shift = c.norm_shift + root.exponent;
    return {
        shift_round(product<Total::width + MULTIPLIER_WIDTH + 1>(total, c.mean_multiplier), c.mean_shift),
        shift_round(product<2 * FACTOR_WIDTH + 2>(root.mantissa, c.norm_scale), ROW_FRACTION),
        shift < 0 ? 0 : shift > MAX_SHIFT ? MAX_SHIFT : shift,
    };
}

inline Prepared normalise(const Element &x, const Normaliser &by) {
#pragma HLS INLINE
    const ap_int<Mean::width + 1> difference = (ap_int<Mean::width>(x) << MEAN_GUARD) - by.mean;
    return shift_round(product<Prepared::width>(difference, by.scale), by.shift);
}

}  // namespace patchloom
