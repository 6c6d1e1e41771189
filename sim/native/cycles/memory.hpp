// The memory of sim/native/memory.hpp, its timing alone.
#pragma once

#include <algorithm>
#include <deque>
#include <limits>

#include "wires.hpp"

class Memory {
public:
    Count beats_read = 0, beats_written = 0;

    void offer(Wires& w, const Machine& m, Count cycle) const {
        w.arready = Count(reads.size()) < m.outstanding;
        const bool refreshes = refreshing(m, cycle);
        w.rvalid = !reads.empty() && cycle >= reads.front().ready && cycle >= next_read && !refreshes;
        w.awready = Count(begun.size() + answers.size()) < m.outstanding;
        w.wready = ahead < AHEAD && cycle >= next_write && !refreshes;
        w.bvalid = !answers.empty() && cycle >= answers.front();
        if (w.rvalid) return;
        const bool late = !reads.empty() && cycle < reads.front().ready;
        w.memory_waits = reads.empty() ? MEMORY_REQUEST
                         : late        ? MEMORY_LATENCY
                         : refreshes   ? MEMORY_REFRESH
                                       : MEMORY_BANDWIDTH;
    }

    void step(const Wires& w, const Machine& m, Count cycle) {
        if (w.rvalid) {
            beats_read++;
            next_read = cycle + m.cycles_per_beat;
            if (!--reads.front().left) reads.pop_front();
        }
        const bool begins = (w.read_burst && w.arready) || (w.write_burst && w.awready);
        if (begins) first_burst = std::min(first_burst, cycle);
        if (w.read_burst && w.arready) reads.push_back({w.read_burst, cycle + m.latency});
        if (w.write_burst && w.awready) begun.push_back(w.write_burst);
        if (w.wvalid && w.wready) {
            beats_written++;
            ahead++;
            next_write = cycle + m.cycles_per_beat;
        }
        if (w.bvalid) answers.pop_front();
        for (; !begun.empty() && ahead; ahead--) {
            if (--begun.front()) continue;
            begun.pop_front();
            answers.push_back(cycle + m.latency);
        }
    }

private:
    bool refreshing(const Machine& m, Count cycle) const {
        const Count period = m.refresh_period;
        return period && cycle >= first_burst && (cycle - first_burst) % period >= period - m.refresh_cycles;
    }

    struct Burst {
        Count left, ready;
    };
    std::deque<Burst> reads;
    std::deque<Count> begun, answers;  // beats left; cycle of the answer
    Count ahead = 0, next_read = 0, next_write = 0;
    Count first_burst = std::numeric_limits<Count>::max();
};
