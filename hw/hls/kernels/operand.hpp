// What enters the array: slices of tokens behind the prologue, and tiles that come from the scratchpad.
#pragma once

#include "array.hpp"
#include "normaliser.hpp"
#include "softmax.hpp"

namespace patchloom {

// One tile's place in a command: all rows pass through it once per streamed digit.
struct Pass {
    int group;    // of OUTPUTS channels
    int slice;    // of INPUTS features
    int b_digit;  // of the stationary operand
    bool first, last;  // of the group
};

// Row `i` of a command is the one at `column` of a line.
struct Row {
    int i, line, column;
};

inline Row next_row(const Row &row, const Command &c) {
#pragma HLS INLINE
    const bool ends = row.column + 1 == int(c.line);
    return {row.i + 1, ends ? row.line + 1 : row.line, ends ? 0 : row.column + 1};
}

// Chunks from a tensor's first row.
inline int offset_of(const Row &row, int stride, int outer) { return row.line * outer + row.column * stride; }

inline int operand_low(bool wide) { return wide ? OPERAND_LOW_16 : OPERAND_LOW_8; }
inline int operand_high(bool wide) { return wide ? OPERAND_HIGH_16 : OPERAND_HIGH_8; }

// Row `i` of the command's stream is this row of the tensor.
inline int source_row(const Machine &m, const Command &c, int i) {
#pragma HLS INLINE
    return c.queue == QUEUE_GATHER ? int(m.queue[c.expert][i].token) : i;
}

// Where a slice begins, in elements of the row as it is stored.
inline int first_feature(const Command &c, int slice) {
#pragma HLS INLINE
    if (c.a_run == 0) return slice * INPUTS;
    const int chunk = c.a_packed ? 2 * LANES : LANES;
    const int run = slice / int(c.a_run), place = slice % int(c.a_run);
    return run * int(c.a_jump) * chunk + place * (c.a_step == 0 ? INPUTS : int(c.a_step) * chunk);
}

// INPUTS elements of a row, one digit each. Saturations and the row's sum count when a row enters for the first time.
inline Slice stream(Machine &m, const Command &c, const Pass &pass, const Row &at, int a_digit) {
#pragma HLS INLINE
    const int i = at.i, row = source_row(m, c, i);
    const int own = offset_of(at, c.a_stride, c.a_outer);
    const int address = int(c.a_address) + (c.queue == QUEUE_GATHER ? row * int(c.a_stride) : own);
    const int first = first_feature(c, pass.slice);
    const bool wide = c.a_wide;
    const bool fresh = pass.group == 0 && pass.b_digit == 0 && a_digit == 0;
    Normaliser by = {};
    const bool normalises = c.prologue == PROLOGUE_NORMALISE || c.prologue == PROLOGUE_RMS;
    if (normalises) by = normaliser_of(m, c, row);
    Slice slice;
    int clipped = 0;
    RowSum sum = 0;
    for (int k = 0; k < INPUTS; ++k) {
#pragma HLS UNROLL
        const int feature = pass.slice * INPUTS + k;
        Element x = 0;
        if (feature < int(c.depth)) {
            const Element raw = read_element(m, address, first + k, c.a_packed);
            Prepared value = raw;
            if (normalises) value = normalise(raw, by);
            if (c.prologue == PROLOGUE_EXP) value = exp2_negative(difference(m.maximum[i], raw, c.exp_shift), wide);
            x = limit(value, operand_low(wide), operand_high(wide), clipped);
        }
        sum += x;
        slice.x[k] = digit_of<ACTIVATION_WIDTH>(x, a_digit);
    }
    if (fresh) {
        m.saturations += clipped;
        m.row_sum[i] = (pass.slice == 0 ? RowSum(0) : m.row_sum[i]) + sum;
    }
    return slice;
}

// Row j of the tensor is column j of the operand (Q K^T), or its row j (A V). What lies outside is zero.
inline ap_int<WEIGHT_WIDTH> stationary(Machine &m, const Command &c, const Pass &pass, int n, int k) {
#pragma HLS INLINE
    const int feature = pass.slice * INPUTS + k, channel = pass.group * OUTPUTS + n;
    if (feature >= c.depth || channel >= c.columns) return 0;
    const bool columns = c.b_source == STATIONARY_COLUMNS;
    const int row = columns ? channel : feature, column = columns ? feature : channel;
    const bool wide = c.b_digits * WEIGHT_WIDTH >= ELEMENT_WIDTH;
    int clipped = 0;  // of this operand, nothing is counted
    const Element x = limit(
        element(m, int(c.b_address) + row * int(c.b_stride), column), operand_low(wide), operand_high(wide), clipped);
    return digit_of<WEIGHT_WIDTH>(x, pass.b_digit);
}

// One row of the tensor a cycle, as a column or as a row of the tile.
inline void gather_tile(Machine &m, const Command &c, const Pass &pass, Tile &tile) {
    if (c.b_source == STATIONARY_COLUMNS) {
    columns:
        for (int n = 0; n < OUTPUTS; ++n) {
#pragma HLS PIPELINE II=1
            for (int k = 0; k < INPUTS; ++k) tile.weight[n][k] = stationary(m, c, pass, n, k);
        }
    } else {
    rows:
        for (int k = 0; k < INPUTS; ++k) {
#pragma HLS PIPELINE II=1
            for (int n = 0; n < OUTPUTS; ++n) tile.weight[n][k] = stationary(m, c, pass, n, k);
        }
    }
}

}  // namespace patchloom
