// hw.router.Router
#pragma once

#include <algorithm>

#include "parts.hpp"

struct Router {
    enum Scan { SCAN_IDLE, READ, SCAN, HAND, WAIT } scan = SCAN_IDLE;
    enum Turns { FREE, ASK, FEED, TURN } turns = FREE;
    Count row = 0, expert = 0, lane = 0, asked = 0;
    Count left = 0, place = 0, other = 0, other_lane = 0, age = 0, settle = 0;
    Delay arrived, selected;

    void offer(Wires& w) const { w.router_busy = scan != SCAN_IDLE || turns != FREE || settle; }

    void step(Wires& w, const Machine& m) {
        const Router r = *this;
        const Command& c = *w.command;
        r.step_scan(*this, w, m, c);
        r.step_turns(*this, m, c);
        const bool turn = r.turns == TURN;
        settle = turn ? m.router_settle : std::max<Count>(r.settle - 1, 0);
        w.push = r.selected.out(m.router_latency);
        selected.shift(turn && r.place < c.top_k);
    }

private:
    void step_scan(Router& n, const Wires& w, const Machine& m, const Command& c) const {
        const bool free = turns == FREE;
        bool last_asked = false;
        switch (scan) {
        case SCAN_IDLE:
            n.row = n.expert = n.lane = n.asked = 0;
            if (w.router_start) n.scan = READ;
            break;
        case READ:
            last_asked = asked == m.router_rows - 1;
            if (asked != m.router_rows) n.asked = asked + 1;
            if (arrived.out(m.read_latency)) n.scan = SCAN;
            break;
        case SCAN:
            n.expert = expert + 1;
            n.lane = (lane + 1) % m.lanes;
            if (expert + 1 == c.columns) n.scan = HAND;
            else if (lane == m.lanes - 1) n.scan = READ, n.asked = 0;
            break;
        case HAND:
            if (!free) break;
            n.row = row + m.router_rows;
            n.expert = n.lane = n.asked = 0;
            n.scan = c.score_all || n.row >= c.rows ? WAIT : READ;
            break;
        case WAIT:
            if (free) n.scan = row >= c.rows ? SCAN_IDLE : READ;
            break;
        }
        n.arrived.shift(last_asked);
    }

    void step_turns(Router& n, const Machine& m, const Command& c) const {
        switch (turns) {
        case FREE:
            n.place = n.other = n.other_lane = n.age = 0;
            n.left = std::min(m.router_rows, c.rows - row);
            if (scan == HAND) n.turns = c.score_all ? ASK : TURN;
            break;
        case ASK:
            n.age = age + 1;
            if (age == m.read_latency) n.turns = FEED;
            break;
        case FEED:
            n.other = other + 1;
            n.other_lane = (other_lane + 1) % m.lanes;
            if (other + 1 == c.columns) n.turns = TURN;
            else if (other_lane == m.lanes - 1) n.turns = ASK, n.age = 0;
            break;
        case TURN:
            n.place = place + 1;
            if (n.place != m.max_top_k) break;
            n.place = n.other = n.other_lane = n.age = 0;
            n.left = left - 1;
            if (!n.left) n.turns = FREE;
            else if (c.score_all) n.turns = ASK;
            break;
        }
    }
};
