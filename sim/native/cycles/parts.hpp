// Pieces that several units are made of.
#pragma once

#include <algorithm>
#include <bitset>

#include "wires.hpp"

// A bit as it was `cycles` ago.
struct Delay {
    std::bitset<128> line;
    bool out(Count cycles) const { return line[cycles - 1]; }
    void shift(bool in) { (line <<= 1)[0] = in; }
};

// Cycles from the read of a row's residual, or of its factors, until the row is written.
inline Count residual_lead(const Command& c, const Machine& m) {
    return c.residual == RESIDUAL_MULTIPLY ? m.factor_lead : m.residual_lead;
}

// Whether the scratchpad is read for the residual of a row that has begun its way through the datapath then.
inline bool reads_residual(const Delay& begun, const Command* c, const Machine& m) {
    return c && c->residual && begun.out(m.datapath_write - residual_lead(*c, m));
}

// amaranth.lib.fifo.SyncFIFOBuffered; hw.buffer.Buffer is one whose depth is one more than its RAM's.
struct Buffer {
    Count inner_level = 0;
    bool r_rdy = false;

    void update(Count depth, bool w_en, bool r_en) {
        const bool do_write = w_en && inner_level != depth - 1;
        const bool do_inner_read = inner_level && (!r_rdy || r_en);
        inner_level += do_write - do_inner_read;
        r_rdy = do_inner_read || (r_rdy && !r_en);
    }
};

// hw.gearbox.Gearbox: its signals follow from those at its inputs.
struct Gearbox {
    bool narrow = true;  // items no wider than beats
    Count ratio = 1, position = 0;

    Gearbox(Count bus_width, Count width)
        : narrow(width <= bus_width), ratio(narrow ? bus_width / width : width / bus_width) {}
    bool final() const { return position == ratio - 1; }
    bool valid(bool beat, bool clear = false) const { return beat && !clear && (narrow || final()); }
    bool ready(bool beat, bool item_ready, bool clear = false) const {
        if (narrow) return (valid(beat, clear) && item_ready && final()) || (clear && position);
        return !clear && (!final() || item_ready);
    }
    void update(bool beat, bool item_ready, bool clear = false) {
        const bool moves = narrow ? valid(beat, clear) && item_ready : beat && ready(beat, item_ready, clear);
        if (moves) position = final() ? 0 : position + 1;
        if (narrow && clear) position = 0;
    }
};

// hw.dma._Splitter and the registered address channel behind it
struct Bursts {
    Count index = 0, left = 0;  // of the request
    Count cut = 0;              // beats of the burst cut off it, 0: none
    Count beats = 0;            // of the burst in the address channel, 0: not VALID

    bool busy() const { return left || cut; }
    bool do_burst(bool ready, bool allow) const { return cut && (!beats || ready) && allow; }

    void update(Count chunk, bool ready, bool do_burst, bool do_request, const Request& request) {
        if (!beats || ready) beats = do_burst ? cut : 0;
        if (do_burst) {
            cut = 0;
        } else if (!cut) {
            cut = std::min(left, chunk - index);
            index = 0, left -= cut;
        }
        if (do_request) index = request.beat % chunk, left = request.beats;
    }
};
