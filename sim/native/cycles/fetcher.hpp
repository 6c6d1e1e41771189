// hw.fetcher.Fetcher
#pragma once

#include "walker.hpp"

struct Fetcher : Walker {
    Request request;  // to the reader

    using Walker::Walker;

    void offer(Wires& w) const {
        w.fetched = state == END;
        w.fetcher_index = index;
        w.request = request;
    }

    void step(Wires& w, const Machine& m) {
        const Fetcher r = *this;
        r.walk(*this, w, !w.issuer_asks && !w.stager_asks);
        w.fetcher_waits = FETCHER_COMMAND;
        if (r.state == IDLE) w.fetcher_waits = FETCHER_BOOT;
        if (r.state == END) w.fetcher_waits = FETCHER_END;
        if (r.state == RUN) r.fetch(*this, w, m);
    }

    // The request's register, from the boot or the command.
    void ask(const Wires& w) {
        if (request.valid) request.valid = !w.read_ready;
        else request = w.asked;
    }

private:
    void fetch(Fetcher& n, Wires& w, const Machine& m) const {
        const Command& c = *command;
        const bool streams = c.kind == KIND_LOAD || c.kind == KIND_TABLE ||
                             (c.kind == KIND_MATMUL && c.b_source == STATIONARY_MEMORY);
        if (c.kind == KIND_END) {
            n.state = END;
        } else if (!c.expected && !known && !filling) {
            w.fetcher_waits = FETCHER_ROUTE;
        } else if (streams && (c.expected || !empty)) {
            w.asked = {true, c.dma_address / m.beat_bytes, c.dma_beats};
            w.fetcher_waits = request.valid ? FETCHER_READER : NO_WAIT;
            if (!request.valid) advance(n, m);
        } else {
            advance(n, m);
        }
    }
};
