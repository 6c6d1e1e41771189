// hw.walker.Walker
#pragma once

#include "wires.hpp"

struct Walker {
    enum State { IDLE, FETCH, TAKE, DECODE, RUN, LOAD, MATMUL, ROUTE_START, ROUTE, STORE, END } state = IDLE;
    Count index = 1, seen = 0;
    const Command* command;
    bool known = false, empty = false, filling = false;  // as they were a cycle ago

    Walker(const Command* commands, const Count* lengths) : command(commands), commands(commands), lengths(lengths) {}

    bool queued() const { return command->kind == KIND_MATMUL && command->queue != QUEUE_NONE; }
    Count length() const { return queued() ? lengths[command->expert] : command->rows; }

protected:
    // States that all walkers begin with, on `n`; `grant`: no walker before this one asks for a command.
    void walk(Walker& n, const Wires& w, bool grant) const {
        if (state == IDLE && w.begun) n.state = FETCH;
        if (state == FETCH && grant) n.state = TAKE;
        if (state == TAKE) n.state = DECODE, n.command = commands + index;
        if (state == DECODE) n.state = RUN;
        n.known = !queued() || seen == w.routes;
        n.empty = queued() && !length();
        n.filling = queued() && length() && seen == w.routes_begun;
    }

    void advance(Walker& n, const Machine& m) const {
        n.index = index + 1;
        if (command->kind == KIND_ROUTE) n.seen = (seen + 1) % m.routes;
        n.state = FETCH;
    }

private:
    const Command* commands;
    const Count* lengths;
};
