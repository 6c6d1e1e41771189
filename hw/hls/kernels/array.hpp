// The weight-stationary array: INPUTS x OUTPUTS multipliers, one slice of a token in, OUTPUTS partial sums out.
#pragma once

#include "types.hpp"

namespace patchloom {

struct Slice {
    ap_int<ACTIVATION_WIDTH> x[INPUTS];
};

struct Tile {
    ap_int<WEIGHT_WIDTH> weight[OUTPUTS][INPUTS];
};

// Of a group of output channels.
struct Parameters {
    ap_int<BIAS_WIDTH> bias[OUTPUTS];
    ap_uint<MULTIPLIER_WIDTH> multiplier[OUTPUTS];
    ap_uint<PARAMETER_BITS - BIAS_WIDTH - MULTIPLIER_WIDTH> shift[OUTPUTS];
};

// The sum of INPUTS products always fits; the wider native type is taken only where it must be.
template <bool NARROW>
struct Native {
    typedef int type;
};
template <>
struct Native<false> {
    typedef int64_t type;
};
typedef Native<(PARTIAL_WIDTH <= 32)>::type Partial;

// Adds the slice's products, `shift` bits up (the weight of both digits), to what the row has so far.
inline void multiply(const Slice &slice, const Tile &tile, int shift, Sum (&sums)[OUTPUTS]) {
#pragma HLS INLINE
    for (int n = 0; n < OUTPUTS; ++n) {
#pragma HLS UNROLL
        Partial partial = 0;
        for (int k = 0; k < INPUTS; ++k) {
#pragma HLS UNROLL
            partial += Partial(slice.x[k].to_int()) * tile.weight[n][k].to_int();
        }
        sums[n] += Sum(ap_int<PARTIAL_WIDTH>(partial)) << shift;
    }
}

}  // namespace patchloom
