// Signals between units.
#pragma once

#include "../limits.hpp"
#include "facts.hpp"

// To a DMA engine.
struct Request {
    bool valid = false;
    Count beat = 0, beats = 0;
};

// Low or zero unless driven in this cycle. The first group says what registers hold (`offer`), the second what follows
// from it (`step`); in `step`, a unit looks at signals of its own cycle that were driven before.
struct Wires {
    // memory
    bool arready, rvalid, awready, wready, bvalid;
    // DMA engines; `burst`: beats of the one in the address channel
    Count read_burst, write_burst;
    bool read_ready, data_valid, write_ready, beats_ready, wvalid, writer_idle;
    bool do_read_burst, do_write_burst;
    // sequencer
    Request request;  // to the reader
    bool begun;
    bool issuer_asks, stager_asks;  // for a command
    bool staged, fetched;           // come to the end
    Count issuer_index, stager_index, fetcher_index;
    Count routes, routes_begun;
    const Command *command, *loader_command;
    bool tile_free, parameters_free, writes_result, reads_residual;
    // others
    bool loader_busy, router_busy, storer_busy;
    const Command* executing;  // by the datapath
    bool one_row;              // whether the command has no more
    Count rows_waiting;        // issued and not yet taken by an epilogue of few lanes

    Request asked;       // of the request's register
    Request writes;      // to the writer
    bool data_ready, beats_valid;
    bool done;
    bool beat, row_done, new_channels, row_taken, use_tile, use_parameters;
    bool loader_start, loader_drop, loader_allowed;
    bool weights_ready, starved, tile_load, tile_done, parameters_done;
    bool router_start, push, storer_start;
    Wait issuer_waits = NO_WAIT, stager_waits = NO_WAIT, fetcher_waits = NO_WAIT;
    Wait loader_waits = NO_WAIT, reader_waits = NO_WAIT, memory_waits = NO_WAIT;

    bool weights_valid() const { return data_valid && begun; }
    bool do_data() const { return data_valid && data_ready; }
    bool do_beat() const { return beats_valid && beats_ready; }
};
