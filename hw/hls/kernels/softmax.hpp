// exp2 of a score's distance from its row's maximum, on its way into A V.
#pragma once

#include "fixed.hpp"

namespace patchloom {

// 2**(-difference / 2**SCORE_FRACTION) as an operand of 16 bits if `wide`, else 8.
inline ap_uint<ELEMENT_WIDTH> exp2_negative(const Difference &difference, bool wide) {
#pragma HLS INLINE
    constexpr int LAST = 31;  // a longer shift gives zero as well
    const int above = difference >> SCORE_FRACTION;
    const int whole = above < LAST ? above : LAST;
    const int index = difference.range(SCORE_FRACTION - 1, EXP2_FRACTION_BITS);
    const int fraction = difference.range(EXP2_FRACTION_BITS - 1, 0);
    const ap_int<EXP2_BASE_WIDTH + 2> value = interpolate<EXP2_FRACTION_BITS>(EXP2_BASE, EXP2_SLOPE, index, fraction);
    return shift_round(value, whole + EXP2_GUARD + (wide ? 0 : ELEMENT_WIDTH / 2));
}

inline Difference difference(const Element &maximum, const Element &score, int exp_shift) {
#pragma HLS INLINE
    return Difference(maximum - score) << exp_shift;
}

}  // namespace patchloom
