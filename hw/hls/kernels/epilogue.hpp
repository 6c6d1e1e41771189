// What leaves the array: bias, requantise, activation, row scale, residual; statistics and maxima as rows are written.
#pragma once

#include "activation.hpp"
#include "array.hpp"
#include "machine.hpp"
#include "operand.hpp"

namespace patchloom {

// A row on its way out.
struct Target {
    int row;  // of the output
    int own, other;  // chunks from the first row to it, of the output and of the residual
    Factor factor;
    int extra;     // shift, beyond the channel's
    bool chained;  // the output itself is the residual: not the token's first expert
};

inline Target target_of(const Machine &m, const Command &c, const Row &at) {
#pragma HLS INLINE
    const int i = at.i, own = offset_of(at, c.o_stride, c.o_outer), other = offset_of(at, c.r_stride, c.r_outer);
    const Entry entry = m.queue[c.expert][i];
    Target target = {i, own, other, Factor(ROW_ONE), 0, false};
    if (c.queue == QUEUE_SCATTER) {
        target.row = entry.token;
        target.own = target.row * int(c.o_stride);
        target.other = target.row * int(c.r_stride);
    }
    if (c.row_scale == ROWSCALE_GATE) target.factor = entry.score;
    if (c.row_scale == ROWSCALE_SOFTMAX) {
        const Scaled inverse = reciprocal(m.row_sum[i]);
        target.factor = inverse.mantissa;
        target.extra = inverse.exponent;
    }
    target.chained = (c.residual == RESIDUAL_CHAIN || c.residual == RESIDUAL_CHAIN_ZERO) && !entry.first;
    return target;
}

inline Element before(Machine &m, const Command &c, const Target &target, int column) {
#pragma HLS INLINE
    if (target.chained) return element(m, int(c.o_address) + target.own, column);
    if (c.residual == RESIDUAL_NONE || c.residual == RESIDUAL_CHAIN_ZERO) return 0;
    return element(m, int(c.r_address) + target.other, column);
}

inline Element requantise(
    const Machine &m, const Command &c, const Sum &sum, const Parameters &p, int n, const Target &target,
    const Element &residual, int &clipped) {
#pragma HLS INLINE
    const bool own = c.b_source == STATIONARY_MEMORY;
    const ap_uint<MULTIPLIER_WIDTH> multiplier = own ? p.multiplier[n] : c.multiplier;
    const int shift = (own ? int(p.shift[n]) : int(c.shift)) + target.extra;
    const ap_int<BIAS_WIDTH + 1> biased = sum + (own ? p.bias[n] : ap_int<BIAS_WIDTH>(0));
    const auto scaled = product<BIAS_WIDTH + MULTIPLIER_WIDTH + 2>(biased, multiplier);
    constexpr int HIGH = (1 << (EPILOGUE_WIDTH - 1)) - 1;
    const auto rounded = shift_round(scaled, shift < MAX_SHIFT ? shift : MAX_SHIFT);
    const EpilogueWord word = limit(rounded, -HIGH - 1, HIGH, clipped);
    const bool multiplies = c.residual == RESIDUAL_MULTIPLY;
    ap_int<FACTOR_WIDTH + 1> factor = target.factor;
    if (multiplies) factor = residual;
    const EpilogueWord activated = activate(word, c.post, m.table[n]);
    const auto weighted = product<EPILOGUE_WIDTH + FACTOR_WIDTH + 1>(activated, factor);
    const bool adds = !multiplies && c.residual != RESIDUAL_MAXIMUM;
    const Element added = adds ? residual : Element(0);
    ap_int<EPILOGUE_WIDTH + 3> y = shift_round(weighted, ROW_FRACTION + int(c.post_shift)) + added;
    if (c.residual == RESIDUAL_MAXIMUM && y < residual) y = residual;
    const int high = c.o_wide ? (1 << (ELEMENT_WIDTH - 1)) - 1 : (1 << (ELEMENT_WIDTH / 2 - 1)) - 1;
    return limit(y, -high - 1, high, clipped);
}

// OUTPUTS channels of a row. Lanes of the last chunk beyond the tensor's columns become zero.
inline void finish(Machine &m, const Command &c, int group, const Parameters &p, const Row &at) {
#pragma HLS INLINE
    const int i = at.i;
    const Target target = target_of(m, c, at);
    const int address = int(c.o_address) + target.own;
    const int columns = c.columns, padded = (columns + LANES - 1) / LANES * LANES;
    int clipped = 0;
    Total total = 0;
    Squares squares = 0;
    Element highest = group == 0 ? Element(-(1 << (ELEMENT_WIDTH - 1))) : m.running_maximum[i];
    for (int n = 0; n < OUTPUTS; ++n) {
#pragma HLS UNROLL
        const int column = group * OUTPUTS + n;
        Element y = 0;
        if (column < columns) {
            y = requantise(m, c, m.sums[i][n], p, n, target, before(m, c, target, column), clipped);
            highest = y > highest ? y : highest;
        }
        if (column < padded) write_element(m, address, column, c.o_packed, y);
        total += y;
        squares += y * y;
    }
    m.saturations += clipped;
    if (c.statistics) {
        const int at = c.o_statistics + target.row;
        m.total[at] = (group == 0 ? Total(0) : m.total[at]) + total;
        m.squares[at] = (group == 0 ? Squares(0) : m.squares[at]) + squares;
    }
    m.running_maximum[i] = highest;
    if (c.row_maximum && (group + 1) * OUTPUTS >= columns) m.maximum[i] = highest;
}

}  // namespace patchloom
