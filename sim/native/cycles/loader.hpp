// hw.loader.Loader
#pragma once

#include "parts.hpp"

struct Loader {
    enum State { IDLE, DROP, LOAD, SETTLE, PARAMETERS, COLUMNS, OFFSET, TILE, READ, WAIT } state = IDLE;
    Gearbox chunks, entries, columns, words;
    Count digit = 0, feature = 0, channel = 0, index = 0, count = 0;
    Delay read_last;

    explicit Loader(const Machine& m)
        : chunks(m.word_width, m.chunk_width), entries(m.word_width, m.entry_width),
          columns(m.word_width, m.columns_width), words(m.word_width, m.words_width) {}

    void offer(Wires& w) const { w.loader_busy = state != IDLE; }

    void step(Wires& w, const Machine& m) {
        const Command& c = *w.loader_command;
        const bool arrived = read_last.out(m.read_latency + 1);
        bool reads_last = false;
        switch (state) {
        case IDLE:
            digit = feature = channel = index = count = 0;
            w.loader_waits = LOADER_STAGER;
            if (w.loader_start) state = w.loader_drop ? DROP : first_state(c);
            break;
        case DROP:
            w.weights_ready = true;
            if (starves(w)) break;
            count += m.word_beats;
            if (count == c.dma_beats) state = IDLE;
            break;
        case LOAD:
            if (!w.loader_allowed) w.loader_waits = LOADER_ISSUER;
            else if (take(w, c.kind == KIND_TABLE ? entries : chunks) && ++count == c.rows) state = SETTLE;
            break;
        case SETTLE:
            if (index++ == m.write_latency + 1) state = IDLE;
            break;
        case PARAMETERS:
            if (!w.parameters_free) w.loader_waits = LOADER_PARAMETERS;
            else if (take(w, words)) next_parameters(w, m);
            break;
        case COLUMNS:
            if (!index && !w.tile_free) w.loader_waits = LOADER_TILE;
            else if (take(w, columns)) next_columns(w, m, c);
            break;
        case OFFSET: state = TILE; break;
        case TILE:
            if (w.tile_free && w.loader_allowed) state = READ;
            else w.loader_waits = w.tile_free ? LOADER_ISSUER : LOADER_TILE;
            break;
        case READ:
            if (w.reads_residual || (m.shared_port && w.writes_result)) w.loader_waits = LOADER_PORT;
            else reads_last = read(w, m, c);
            break;
        case WAIT:
            if (arrived) next_tile(w, m, c);
            break;
        }
        read_last.shift(reads_last);
    }

private:
    static State first_state(const Command& c) {
        if (c.kind == KIND_LOAD || c.kind == KIND_TABLE) return LOAD;
        return c.b_source == STATIONARY_MEMORY ? PARAMETERS : OFFSET;
    }

    // Whether memory has nothing for the loader.
    static bool starves(Wires& w) {
        w.starved = !w.weights_valid();
        if (w.starved) w.loader_waits = LOADER_WEIGHTS;
        return w.starved;
    }

    // Select a box and take an item; returns whether there was one.
    static bool take(Wires& w, Gearbox& box) {
        const bool beat = w.weights_valid(), item = box.valid(beat);
        w.weights_ready = box.ready(beat, true);
        box.update(beat, true);
        starves(w);
        return item;
    }

    void next_parameters(Wires& w, const Machine& m) {
        index += m.parameters_at_once;
        if (index < m.outputs) return;
        w.parameters_done = true;
        index = 0;
        state = COLUMNS;
    }

    void next_columns(Wires& w, const Machine& m, const Command& c) {
        w.tile_load = true;
        index += m.columns_at_once;
        if (index >= m.outputs) next_tile(w, m, c);
    }

    // A row or column of a tile from the scratchpad; returns whether it is the last one.
    bool read(Wires& w, const Machine& m, const Command& c) {
        const bool by_row = c.b_source == STATIONARY_ROWS;
        const Count left = by_row ? c.depth - feature : c.columns - channel;
        w.tile_load = true;
        index++;
        const bool last = index == (by_row ? m.inputs : m.outputs) || index == left;
        if (last) state = WAIT;
        return last;
    }

    void next_tile(Wires& w, const Machine& m, const Command& c) {
        const bool final_digit = digit + 1 == c.b_digits, final_slice = feature + m.inputs >= c.depth;
        const bool final_group = channel + m.outputs >= c.columns;
        w.tile_done = true;
        index = 0;
        digit = final_digit ? 0 : digit + 1;
        if (final_digit) feature = final_slice ? 0 : feature + m.inputs;
        if (final_digit && final_slice) channel += m.outputs;
        if (final_digit && final_slice && final_group) state = IDLE;
        else if (c.b_source != STATIONARY_MEMORY) state = OFFSET;
        else state = final_digit && final_slice ? PARAMETERS : COLUMNS;
    }
};
