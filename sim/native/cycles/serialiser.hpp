// hw.serialiser: Serialiser and ParameterQueue, if the epilogue has fewer lanes than there are sums
#pragma once

#include <deque>

#include "parts.hpp"

struct Serialiser {
    Buffer buffer;
    std::deque<bool> channels;  // of the rows issued and not yet taken: whether one begins a group
    Count now = 0;              // the row's pass
    Count ahead = 0;            // sets of parameters that are written and not in use
    Delay sums, begun, taken;

    void offer(Wires& w, const Machine& m) const {
        w.rows_waiting = channels.size();
        if (m.passes == 1) return;
        w.writes_result = taken.out(m.datapath_write);
        w.reads_residual = reads_residual(begun, w.executing, m);
        w.parameters_free = ahead != m.parameter_sets - 1;
    }

    void step(Wires& w, const Machine& m) {
        if (m.passes == 1) return;
        const bool first = now == 0, begins = buffer.r_rdy && first && channels.front();
        const bool adds = w.executing && w.executing->residual;
        const bool port = m.shared_port && first && adds && taken.out(residual_lead(*w.executing, m));
        bool soon = false;  // the same row again
        for (Count age = 1; age <= m.epilogue_period - m.passes; age++) soon |= first && w.one_row && taken.out(age);
        const bool do_pass = buffer.r_rdy && !port && !soon && !(begins && !ahead);
        w.row_taken = do_pass && now == m.passes - 1;
        begun.shift(do_pass && first);
        if (do_pass) now = w.row_taken ? 0 : now + 1;
        ahead += w.parameters_done - (do_pass && begins);
        buffer.update(m.rows_waiting + 1, sums.out(m.sums_latency), w.row_taken);
        if (w.row_taken) channels.pop_front();
        if (w.row_done) channels.push_back(w.new_channels);
        sums.shift(w.row_done);
        taken.shift(w.row_taken);
    }
};
