// Fixed-point arithmetic: rounding shifts, saturation, tables with linear interpolation.
#pragma once

#include "types.hpp"

namespace patchloom {

// a * b of W <= 63 bits. The vendor's headers simulate a product of more than 32 bits word by word, on the heap.
template <int W, typename A, typename B>
ap_int<W> product(const A &a, const B &b) {
#pragma HLS INLINE
#ifdef __SYNTHESIS__
    return a * b;
#else
    return a.to_int64() * b.to_int64();
#endif
}

// Round to nearest, ties up: half is added at the last bit that the shift drops. A shift beyond the width gives zero.
template <int W>
ap_int<W> shift_round(const ap_int<W> &value, int shift) {
#pragma HLS INLINE
    const int bounded = shift < W ? shift : W;
    const ap_int<W + 1> doubled = ap_int<W + 1>(value) << 1;
    const ap_int<W + 1> floored = doubled >> bounded;
    return (floored + 1) >> 1;
}

// Clips to [low, high]; `clipped` counts what did not fit.
template <int W>
ap_int<W> limit(const ap_int<W> &value, int low, int high, int &clipped) {
#pragma HLS INLINE
    if (value < low) {
        ++clipped;
        return low;
    }
    if (value > high) {
        ++clipped;
        return high;
    }
    return value;
}

// Digit `index`, least significant first, of a value that those digits can hold; all but the last one are signed
// remainders.
template <int W>
ap_int<W> digit_of(const Element &value, int index) {
#pragma HLS INLINE
    const ap_int<W> low = value;
    if (index == 0) return low;
    return ap_int<ELEMENT_WIDTH + 1>(value - low) >> (W % ELEMENT_WIDTH);
}

// base + slope * fraction / 2**FRACTION_BITS
template <int FRACTION_BITS, typename Base, typename Slope, int SIZE>
ap_uint<Base::width + 1> interpolate(const Base (&base)[SIZE], const Slope (&slope)[SIZE], int index, int fraction) {
#pragma HLS INLINE
    constexpr int WIDTH = Slope::width + FRACTION_BITS + 1;
    const ap_int<WIDTH> rise = product<WIDTH>(slope[index], ap_uint<FRACTION_BITS>(fraction));
    return base[index] + shift_round(rise, FRACTION_BITS);
}

// Position of the highest set bit; 0 for 0.
template <int W>
int floor_log2(const ap_uint<W> &value) {
#pragma HLS INLINE
    return 63 - __builtin_clzll(value.to_uint64() | 1);
}

// Mantissa / 2**(ROW_FRACTION + exponent)
struct Scaled {
    Factor mantissa;
    int exponent;
};

inline Scaled reciprocal(const ap_uint<SUM_WIDTH> &value) {
#pragma HLS INLINE
    const int exponent = floor_log2(value);
    const ap_uint<SUM_WIDTH> normal = value << (SUM_WIDTH - 1 - exponent);
    constexpr int FRACTION = SUM_WIDTH - 1 - RECIPROCAL_INDEX_BITS;  // the leading bit is always set
    const int index = normal.range(SUM_WIDTH - 2, FRACTION);
    const int fraction = normal.range(FRACTION - 1, FRACTION - RECIPROCAL_FRACTION_BITS);
    return {interpolate<RECIPROCAL_FRACTION_BITS>(RECIPROCAL_BASE, RECIPROCAL_SLOPE, index, fraction), exponent};
}

// Of the square root.
inline Scaled rsqrt(const ap_uint<VARIANCE_WIDTH> &value) {
#pragma HLS INLINE
    const int exponent = floor_log2(value) >> 1;
    const ap_uint<VARIANCE_WIDTH> normal = value << (VARIANCE_WIDTH - 2 - 2 * exponent);
    constexpr int FRACTION = VARIANCE_WIDTH - RSQRT_INDEX_BITS;
    const int index = normal.range(VARIANCE_WIDTH - 1, FRACTION);
    const int fraction = normal.range(FRACTION - 1, FRACTION - RSQRT_FRACTION_BITS);
    return {interpolate<RSQRT_FRACTION_BITS>(RSQRT_BASE, RSQRT_SLOPE, index, fraction), exponent};
}

}  // namespace patchloom
