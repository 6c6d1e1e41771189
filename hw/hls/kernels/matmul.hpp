// MATMUL: for each group of channels, for each tile, all rows through the array; sums leave behind the last tile.
#pragma once

#include "epilogue.hpp"
#include "memory.hpp"
#include "operand.hpp"

namespace patchloom {

constexpr int MOST_GROUPS = (COLUMNS_MAX + OUTPUTS - 1) / OUTPUTS;
constexpr int MOST_TILES = (DEPTH_MAX + INPUTS - 1) / INPUTS * (ELEMENT_WIDTH / WEIGHT_WIDTH);
constexpr int A_DIGITS = ELEMENT_WIDTH / ACTIVATION_WIDTH;

inline int divided_up(int value, int by) { return (value + by - 1) / by; }

inline int rows_of(const Machine &m, const Command &c) {
    return c.queue == QUEUE_NONE ? int(c.rows) : int(m.queued[c.expert]);
}

inline Pass pass_of(const Command &c, int group, int tile, int tiles) {
    return {group, tile / int(c.b_digits), tile % int(c.b_digits), tile == 0, tile == tiles - 1};
}

// All rows through one tile, a row a cycle: prologue, array, and behind the group's last product the epilogue.
// A command writes nothing that it reads but the element it replaces, so that rows do not wait for each other.
inline void stream_rows(
    Machine &m, const Command &c, const Pass &pass, const Tile &tile, const Parameters &parameters) {
    const int rows = rows_of(m, c);
    const int digits = c.a_wide ? A_DIGITS : 1;
digits:
    for (int digit = 0; digit < A_DIGITS; ++digit) {
        if (digit >= digits) break;
        Row row = {0, 0, 0};
    rows:
        for (int i = 0; i < MAX_ROWS; ++i) {
#pragma HLS PIPELINE II=1
#pragma HLS LOOP_TRIPCOUNT min=1 max=MAX_ROWS
#pragma HLS DEPENDENCE variable=m type=inter false
            if (i >= rows) break;
            if (pass.first && digit == 0) {
                for (int n = 0; n < OUTPUTS; ++n) {
#pragma HLS UNROLL
                    m.sums[i][n] = 0;
                }
            }
            const Slice slice = stream(m, c, pass, row, digit);
            multiply(slice, tile, ACTIVATION_WIDTH * digit + WEIGHT_WIDTH * pass.b_digit, m.sums[i]);
            if (pass.last && digit == digits - 1) finish(m, c, pass.group, parameters, row);
            row = next_row(row, c);
        }
    }
}

// Weights from memory: the next tile is read while rows stream through the present one. A loop of this form, its bound
// an argument, is what DATAFLOW takes.
inline void stream_weights(
    Machine &m, const Command &c, const Word *program, int64_t first, int group, int tiles,
    const Parameters &parameters) {
tiles:
    for (int t = 0; t < tiles; ++t) {
#pragma HLS DATAFLOW
#pragma HLS LOOP_TRIPCOUNT min=1 max=MOST_TILES
        Tile tile;
#pragma HLS ARRAY_PARTITION variable=tile.weight type=complete dim=0
        read_tile(program, first + int64_t(t) * TILE_BEATS, tile);
        stream_rows(m, c, pass_of(c, group, t, tiles), tile, parameters);
    }
}

// Tiles from the scratchpad, whose ports the rows need as well: one after the other.
inline void stream_activations(Machine &m, const Command &c, int group, int tiles, const Parameters &parameters) {
tiles:
    for (int t = 0; t < MOST_TILES; ++t) {
#pragma HLS LOOP_TRIPCOUNT min=1 max=MOST_TILES
        if (t >= tiles) break;
        Tile tile;
#pragma HLS ARRAY_PARTITION variable=tile.weight type=complete dim=0
        const Pass pass = pass_of(c, group, t, tiles);
        gather_tile(m, c, pass, tile);
        stream_rows(m, c, pass, tile, parameters);
    }
}

inline void matmul(Machine &m, const Command &c, const Word *program) {
    if (rows_of(m, c) == 0) return;  // nobody chose this expert: its weights are not read
    const int64_t first = c.dma_address.to_int64() / BEAT_BYTES;
    const int tiles = divided_up(c.depth, INPUTS) * int(c.b_digits);
    const int64_t pitch = PARAMETER_BEATS + int64_t(tiles) * TILE_BEATS;
    const int groups = divided_up(c.columns, OUTPUTS);
groups:
    for (int group = 0; group < MOST_GROUPS; ++group) {
#pragma HLS LOOP_TRIPCOUNT min=1 max=MOST_GROUPS
        if (group >= groups) break;
        Parameters parameters = {};
#pragma HLS ARRAY_PARTITION variable=parameters.bias type=complete
#pragma HLS ARRAY_PARTITION variable=parameters.multiplier type=complete
#pragma HLS ARRAY_PARTITION variable=parameters.shift type=complete
        if (c.b_source == STATIONARY_MEMORY) {
            const int64_t at = first + group * pitch;
            read_parameters(program, at, parameters);
            stream_weights(m, c, program, at + PARAMETER_BEATS, group, tiles, parameters);
        } else {
            stream_activations(m, c, group, tiles, parameters);
        }
    }
}

}  // namespace patchloom
