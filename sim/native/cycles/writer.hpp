// hw.dma.Writer
#pragma once

#include <deque>

#include "parts.hpp"

struct Writer {
    Bursts bursts;
    std::deque<Count> begun;  // beats of the bursts in its FIFO
    Count unanswered = 0, left = 0;
    bool active = false, wvalid = false;

    void offer(Wires& w, const Machine& m) const {
        const bool allow = Count(begun.size()) != m.bursts_ahead && unanswered != m.bursts_unanswered;
        w.write_burst = bursts.beats;
        w.wvalid = wvalid;
        w.do_write_burst = bursts.do_burst(w.awready, allow);
        w.write_ready = !bursts.left;
        w.beats_ready = active && (!wvalid || w.wready);
        w.writer_idle = !bursts.busy() && !unanswered;
    }

    void step(const Wires& w, const Machine& m) {
        const bool do_begin = !begun.empty() && (!active || (w.do_beat() && !left));
        unanswered += w.do_write_burst - w.bvalid;
        if (!wvalid || w.wready) wvalid = w.do_beat();
        if (w.do_beat()) active = left != 0, left--;
        if (do_begin) left = begun.front() - 1, active = true, begun.pop_front();
        if (w.do_write_burst) begun.push_back(bursts.cut);
        bursts.update(m.write_chunk, w.awready, w.do_write_burst, w.writes.valid && w.write_ready, w.writes);
    }
};
