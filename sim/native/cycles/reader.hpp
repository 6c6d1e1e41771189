// hw.dma.Reader
#pragma once

#include "parts.hpp"

struct Reader {
    Bursts bursts;
    Buffer buffer;  // of words
    Count free, place = 0;

    explicit Reader(const Machine& m) : free(m.fifo_beats) {}

    void offer(Wires& w, const Machine& m) const {
        const bool room = free >= m.read_chunk;
        w.read_burst = bursts.beats;
        w.do_read_burst = bursts.do_burst(w.arready, room);
        w.read_ready = !bursts.left;
        w.data_valid = buffer.r_rdy;
        if (!w.do_read_burst) w.reader_waits = !bursts.busy() ? READER_REQUEST : room ? READER_MEMORY : READER_ROOM;
    }

    void step(const Wires& w, const Machine& m) {
        const bool whole = w.rvalid && place == m.word_beats - 1;
        free += w.do_data() * m.word_beats - (w.do_read_burst ? bursts.cut : 0);
        if (w.rvalid) place = whole ? 0 : place + 1;
        buffer.update(m.fifo_beats / m.word_beats + 1, whole, w.do_data());
        bursts.update(m.read_chunk, w.arready, w.do_read_burst, w.request.valid && w.read_ready, w.request);
    }
};
