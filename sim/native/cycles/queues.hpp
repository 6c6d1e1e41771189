// hw.router.Queues: how many tokens each expert has.
#pragma once

#include <algorithm>
#include <vector>

#include "wires.hpp"

class Queues {
public:
    // `lengths` and `firsts`: [ROUTEs][max_experts], the queue at the end and the push that begins it
    Queues(const Machine& m, const Count* lengths, const Count* firsts)
        : experts(m.max_experts), ends(lengths), firsts(firsts), now(m.max_experts) {}

    const Count* lengths() const { return now.data(); }

    // Until the ROUTE is done only whether a queue is empty is looked at.
    void step(const Wires& w) {
        if (w.router_start) {
            std::fill(now.begin(), now.end(), 0);
            pushes = 0;
            routed++;
        }
        if (!w.push) return;
        const Count row = routed * experts;
        for (Count e = 0; e < experts; e++)
            if (firsts[row + e] == pushes) now[e] = ends[row + e];
        pushes++;
    }

private:
    Count experts;
    const Count *ends, *firsts;
    std::vector<Count> now;
    Count routed = -1, pushes = 0;
};
