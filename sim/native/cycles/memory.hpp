// The memory of sim/native/memory.hpp, its timing alone.
#pragma once

#include <deque>

#include "wires.hpp"

class Memory {
public:
    Count beats_read = 0, beats_written = 0;

    void offer(Wires& w, const Machine& m, Count cycle) const {
        w.arready = Count(reads.size()) < m.outstanding;
        w.rvalid = !reads.empty() && cycle >= reads.front().ready && cycle >= next_read;
        w.awready = Count(begun.size() + answers.size()) < m.outstanding;
        w.wready = ahead < AHEAD && cycle >= next_write;
        w.bvalid = !answers.empty() && cycle >= answers.front();
        if (w.rvalid) return;
        const bool late = !reads.empty() && cycle < reads.front().ready;
        w.memory_waits = reads.empty() ? MEMORY_REQUEST : late ? MEMORY_LATENCY : MEMORY_BANDWIDTH;
    }

    void step(const Wires& w, const Machine& m, Count cycle) {
        if (w.rvalid) {
            beats_read++;
            next_read = cycle + m.cycles_per_beat;
            if (!--reads.front().left) reads.pop_front();
        }
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
    struct Burst {
        Count left, ready;
    };
    std::deque<Burst> reads;
    std::deque<Count> begun, answers;  // beats left; cycle of the answer
    Count ahead = 0, next_read = 0, next_write = 0;
};
