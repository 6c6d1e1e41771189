// Everything that crosses the AXI bus: commands, chunks, weight tiles, parameters. One word a cycle.
#pragma once

#include "machine.hpp"
#include "array.hpp"

namespace patchloom {

constexpr int ELEMENTS_PER_WORD = BUS_WIDTH / ELEMENT_WIDTH;
constexpr int DIGITS_PER_WORD = BUS_WIDTH / WEIGHT_WIDTH;
constexpr int COMMAND_WORDS = COMMAND_BITS / BUS_WIDTH;
constexpr int MOST_WORDS = (SCRATCHPAD_CHUNKS * LANES + ELEMENTS_PER_WORD - 1) / ELEMENTS_PER_WORD;

inline Command read_command(const Word *program, int64_t first) {
    CommandBits bits = 0;
words:
    for (int i = 0; i < COMMAND_WORDS; ++i) {
#pragma HLS PIPELINE II=1
        bits.range(BUS_WIDTH * i + BUS_WIDTH - 1, BUS_WIDTH * i) = program[first + i];
    }
    return decode(bits);
}

// Chunks of the scratchpad from memory.
inline void load(Machine &m, const Command &c, const Word *memory) {
    const int64_t first = c.dma_address.to_int64() / BEAT_BYTES;
words:
    for (int beat = 0; beat < MOST_WORDS; ++beat) {
#pragma HLS PIPELINE II=1
#pragma HLS LOOP_TRIPCOUNT min=1 max=MOST_WORDS
        if (beat >= c.dma_beats) break;
        const Word word = memory[first + beat];
        for (int i = 0; i < ELEMENTS_PER_WORD; ++i) {
#pragma HLS UNROLL
            element(m, c.a_address, beat * ELEMENTS_PER_WORD + i) =
                word.range(ELEMENT_WIDTH * i + ELEMENT_WIDTH - 1, ELEMENT_WIDTH * i);
        }
    }
}

// The epilogue's table from memory.
inline void load_table(Machine &m, const Command &c, const Word *memory) {
    constexpr int PER_WORD = BUS_WIDTH / TABLE_ENTRY_BITS;
    const int64_t first = c.dma_address.to_int64() / BEAT_BYTES;
words:
    for (int beat = 0; beat < TABLE_ENTRIES / PER_WORD; ++beat) {
#pragma HLS PIPELINE II=1
        const Word word = memory[first + beat];
        for (int i = 0; i < PER_WORD; ++i) {
#pragma HLS UNROLL
            for (int n = 0; n < OUTPUTS; ++n) {
#pragma HLS UNROLL
                m.table[n][beat * PER_WORD + i] =
                    word.range(TABLE_ENTRY_BITS * i + TABLE_ENTRY_BITS - 1, TABLE_ENTRY_BITS * i);
            }
        }
    }
}

inline void store(Machine &m, const Command &c, Word *memory) {
    const int64_t first = c.dma_address.to_int64() / BEAT_BYTES;
words:
    for (int beat = 0; beat < MOST_WORDS; ++beat) {
#pragma HLS PIPELINE II=1
#pragma HLS LOOP_TRIPCOUNT min=1 max=MOST_WORDS
        if (beat >= c.dma_beats) break;
        Word word = 0;
        for (int i = 0; i < ELEMENTS_PER_WORD; ++i) {
#pragma HLS UNROLL
            word.range(ELEMENT_WIDTH * i + ELEMENT_WIDTH - 1, ELEMENT_WIDTH * i) =
                element(m, c.a_address, beat * ELEMENTS_PER_WORD + i);
        }
        memory[first + beat] = word;
    }
}

// A weight tile: column after column, a column's digits feature after feature.
inline void read_tile(const Word *program, int64_t first, Tile &tile) {
words:
    for (int beat = 0; beat < TILE_BEATS; ++beat) {
#pragma HLS PIPELINE II=1
        const Word word = program[first + beat];
        for (int i = 0; i < DIGITS_PER_WORD; ++i) {
#pragma HLS UNROLL
            const int position = beat * DIGITS_PER_WORD + i;
            if (position < INPUTS * OUTPUTS)
                tile.weight[position / INPUTS][position % INPUTS] =
                    word.range(WEIGHT_WIDTH * i + WEIGHT_WIDTH - 1, WEIGHT_WIDTH * i);
        }
    }
}

// Epilogue parameters of a group of channels: bias, multiplier and shift, PARAMETER_BITS a channel. They are taken in
// pieces that both a word and a channel have a whole number of.
inline void read_parameters(const Word *program, int64_t first, Parameters &parameters) {
    constexpr int PIECE = BUS_WIDTH < PARAMETER_BITS ? BUS_WIDTH : PARAMETER_BITS;
    ap_uint<PARAMETER_BITS> channels[OUTPUTS] = {};
#pragma HLS ARRAY_PARTITION variable=channels type=complete
words:
    for (int beat = 0; beat < PARAMETER_BEATS; ++beat) {
#pragma HLS PIPELINE II=1
        const Word word = program[first + beat];
        for (int i = 0; i < BUS_WIDTH / PIECE; ++i) {
#pragma HLS UNROLL
            const int bit = beat * BUS_WIDTH + i * PIECE, n = bit / PARAMETER_BITS, low = bit % PARAMETER_BITS;
            if (n < OUTPUTS) channels[n].range(low + PIECE - 1, low) = word.range(PIECE * i + PIECE - 1, PIECE * i);
        }
    }
    for (int n = 0; n < OUTPUTS; ++n) {
#pragma HLS UNROLL
        const ap_uint<PARAMETER_BITS> channel = channels[n];
        parameters.bias[n] = channel.range(BIAS_WIDTH - 1, 0);
        parameters.multiplier[n] = channel.range(BIAS_WIDTH + MULTIPLIER_WIDTH - 1, BIAS_WIDTH);
        parameters.shift[n] = channel.range(PARAMETER_BITS - 1, BIAS_WIDTH + MULTIPLIER_WIDTH);
    }
}

}  // namespace patchloom
