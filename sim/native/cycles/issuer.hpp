// hw.issuer.Issuer
#pragma once

#include "parts.hpp"
#include "walker.hpp"

struct Issuer : Walker {
    bool tile_written = false, parameters_written = false;
    Count routes = 0, routes_begun = 0, settle = 0;
    Count row = 0, feature = 0, channel = 0, streamed = 0, stationary = 0, gap = 0;
    bool odd = false;
    const Command* executing = nullptr;
    bool one_row = false;  // of the command executed
    Delay written;

    using Walker::Walker;

    void offer(Wires& w, const Machine& m) const {
        w.issuer_asks = state == FETCH;
        w.issuer_index = index;
        w.command = command;
        w.routes = routes;
        w.routes_begun = routes_begun;
        w.tile_free = !tile_written;
        w.parameters_free = !parameters_written;
        w.executing = executing;
        w.one_row = one_row;
        if (m.passes > 1) return;
        w.writes_result = written.out(m.datapath_write);
        w.reads_residual = reads_residual(written, executing, m);
    }

    void step(Wires& w, const Machine& m) {
        const Issuer r = *this;
        Issuer& n = *this;
        const bool drained = r.settle == 0, same = r.index == w.stager_index;
        if (!drained && !w.rows_waiting) n.settle = r.settle - 1;
        n.odd = !r.odd;
        r.walk(n, w, true);
        switch (r.state) {
        case IDLE: w.issuer_waits = ISSUER_BOOT; break;
        case FETCH:
        case TAKE:
        case DECODE: w.issuer_waits = ISSUER_COMMAND; break;
        case RUN:
            w.issuer_waits = ISSUER_SETTLE;
            if (!drained) break;
            n.executing = r.command;
            n.one_row = r.length() == 1;
            r.begin(n, w, m, same);
            break;
        case MATMUL:
            w.loader_allowed = drained && same;
            if (r.beats(n, w, m)) {
                n.settle = m.datapath_latency;
                r.advance(n, m);
            }
            break;
        case ROUTE_START:
            w.issuer_waits = ISSUER_ROUTE;
            w.router_start = true;
            n.routes_begun = (r.routes_begun + 1) % m.routes;
            n.state = ROUTE;
            break;
        case ROUTE:
            w.issuer_waits = ISSUER_ROUTE;
            if (w.router_busy) break;
            n.routes = (r.routes + 1) % m.routes;
            r.advance(n, m);
            break;
        case STORE:
            w.issuer_waits = ISSUER_STORE;
            if (!w.storer_busy) r.advance(n, m);
            break;
        case END:
            w.issuer_waits = ISSUER_END;
            w.done = w.writer_idle && w.fetched && w.staged;
            break;
        case LOAD: break;  // the stager's
        }
        n.written.shift(w.row_done);
    }

    // The next tile and parameters: written by the loader, used by a beat.
    void exchange(const Wires& w) {
        if (w.tile_done || w.use_tile) tile_written = w.tile_done;
        if (w.parameters_done || w.use_parameters) parameters_written = w.parameters_done;
    }

private:
    // RUN when all before has left the datapath.
    void begin(Issuer& n, Wires& w, const Machine& m, bool same) const {
        const Command& c = *command;
        w.issuer_waits = ISSUER_COMMAND;
        switch (c.kind) {
        case KIND_LOAD:
        case KIND_TABLE:
            w.loader_allowed = same;
            w.issuer_waits = ISSUER_LOAD;
            if (w.stager_index > index) advance(n, m);
            break;
        case KIND_STORE:
            w.writes = {true, c.dma_address / m.beat_bytes, c.dma_beats};
            w.issuer_waits = ISSUER_STORE;
            w.storer_start = w.write_ready;
            if (w.write_ready) n.state = STORE;
            break;
        case KIND_MATMUL:
            n.state = MATMUL;
            n.odd = false;
            if (empty) advance(n, m);
            break;
        case KIND_ROUTE:
            if (w.stager_index >= index && w.fetcher_index >= index) n.state = ROUTE_START;
            else w.issuer_waits = ISSUER_BEHIND;
            break;
        case KIND_END: n.state = END; break;
        default: break;  // BAD_COMMAND stops the machine
        }
    }

    // MATMUL: a beat, or what it waits for; returns whether it was the last one.
    bool beats(Issuer& n, Wires& w, const Machine& m) const {
        const Command& c = *command;
        const Count rows = length(), digits_a = m.splits_streamed ? c.a_wide : 0;
        const bool last_slice = feature + m.inputs >= c.depth;
        const bool last_digit = streamed == digits_a && stationary + 1 == c.b_digits;
        const bool last_group = channel + m.outputs >= c.columns, last_row = row + 1 == rows;
        const bool new_tile = row == 0 && streamed == 0;
        const bool ends = last_digit && last_slice;
        const bool new_channels = row == 0 && ends && c.b_source == STATIONARY_MEMORY;
        const bool queues = m.passes > 1;
        const bool waits = (new_tile && !tile_written) || (new_channels && !queues && !parameters_written);
        const bool port = m.shared_port && !queues && ends && c.residual && odd;
        const bool full = queues && ends && w.rows_waiting == m.rows_waiting;
        if (gap) n.gap = gap - 1;
        if (waits || gap || port || full) {
            w.issuer_waits = waits ? ISSUER_TILE : gap ? ISSUER_GAP : port ? ISSUER_PORT : ISSUER_ROOM;
            return false;
        }
        w.beat = true;
        w.row_done = ends;
        w.new_channels = new_channels;
        w.use_tile = new_tile;
        w.use_parameters = new_channels;
        n.row = last_row ? 0 : row + 1;
        if (!last_row) return false;
        if (rows < m.period) n.gap = m.period - rows;
        n.streamed = streamed == digits_a ? 0 : 1;
        if (streamed == digits_a) n.stationary = stationary + 1 == c.b_digits ? 0 : stationary + 1;
        if (!last_digit) return false;
        n.feature = last_slice ? 0 : feature + m.inputs;
        if (!last_slice) return false;
        n.channel = last_group ? 0 : channel + m.outputs;
        return last_group;
    }
};
