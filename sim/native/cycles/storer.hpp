// hw.storer.Storer
#pragma once

#include "parts.hpp"

struct Storer {
    Gearbox box;
    Buffer buffer;
    bool busy = false;
    Count asked = 0, gone = 0, level = 0;
    Delay read;

    explicit Storer(const Machine& m) : box(m.chunk_width, m.bus_width) {}

    void offer(Wires& w) const { w.storer_busy = busy; }

    void step(Wires& w, const Machine& m) {
        const Count rows = w.command->rows;
        const bool chunk = buffer.r_rdy;
        const bool reads = busy && asked != rows && level != m.storer_buffer;
        const bool taken = chunk && box.ready(chunk, w.beats_ready);
        w.beats_valid = box.valid(chunk);
        buffer.update(m.storer_buffer, read.out(m.read_latency), taken);
        box.update(chunk, w.beats_ready);
        read.shift(reads);
        asked += reads;
        gone += taken;
        level += reads - taken;
        if (taken && gone == rows) busy = false;
        if (w.storer_start) busy = true, asked = gone = 0;
    }
};
