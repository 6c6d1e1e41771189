// hw.stager.Stager
#pragma once

#include "walker.hpp"

struct Stager : Walker {
    using Walker::Walker;

    void offer(Wires& w) const {
        w.stager_asks = state == FETCH;
        w.staged = state == END;
        w.stager_index = index;
        w.loader_command = command;
    }

    void step(Wires& w, const Machine& m) {
        const Stager r = *this;
        r.walk(*this, w, !w.issuer_asks);
        w.stager_waits = STAGER_COMMAND;
        if (r.state == IDLE) w.stager_waits = STAGER_BOOT;
        if (r.state == END) w.stager_waits = STAGER_END;
        if (r.state == LOAD) {
            w.stager_waits = NO_WAIT;
            if (!w.loader_busy) r.advance(*this, m);
        }
        if (r.state == RUN) r.stage(*this, w, m);
    }

private:
    void stage(Stager& n, Wires& w, const Machine& m) const {
        const Command& c = *command;
        if (c.kind == KIND_END) {
            n.state = END;
        } else if (!known) {
            w.stager_waits = STAGER_ROUTE;
        } else if ((c.kind == KIND_LOAD || c.kind == KIND_TABLE || c.kind == KIND_MATMUL) && (c.expected || !empty)) {
            w.loader_start = true;
            w.loader_drop = empty;
            n.state = LOAD;
        } else {
            advance(n, m);
        }
    }
};
