// The machine's control without its data, cycle by cycle: what hw/ does, state by state, under memory.hpp's memory.
// C interface for ctypes; sim/cycles.py is the other half.
//
// It is written as the RTL is: a unit a header under cycles/, holding the unit's registers. `offer` drives the signals
// (`Wires`) that registers alone decide; `step` drives the others and gives registers their next values. States and
// signals bear the RTL's names. facts.hpp is written by sim/cycles.py: enumerations and fields of the command set,
// `Machine` (the constants of hw/ for a Config, and the memory's settings), `Wait` (what can be waited for).

#include "cycles/boot.hpp"
#include "cycles/fetcher.hpp"
#include "cycles/issuer.hpp"
#include "cycles/loader.hpp"
#include "cycles/memory.hpp"
#include "cycles/queues.hpp"
#include "cycles/reader.hpp"
#include "cycles/router.hpp"
#include "cycles/serialiser.hpp"
#include "cycles/stager.hpp"
#include "cycles/storer.hpp"
#include "cycles/writer.hpp"

namespace {

constexpr Count STANDSTILL = 1 << 20;  // cycles without progress after which there will be none

// What the caller gives and gets; the same fields, in the same order, are in sim/cycles.py.
struct Job {
    const Machine* machine;
    const Command* commands;
    Count command_count;
    const Count* lengths;  // [ROUTEs][max_experts], of the queues
    const Count* firsts;   // [ROUTEs][max_experts], the push that begins the queue
    Count* spans;          // [commands][2], first cycle and end
    Count* ahead;          // [commands][2], end of the stager's and of the fetcher's
    Count* waits;          // [commands][WAITS]
    Count cycles, beats_read, beats_written;
    Count stuck_at;  // command that never ends, or -1
};

class Model {
public:
    explicit Model(Job& job)
        : job(job), m(*job.machine), queues(m, job.lengths, job.firsts), boot(m, job.command_count),
          issuer(job.commands, queues.lengths()), stager(job.commands, queues.lengths()),
          fetcher(job.commands, queues.lengths()), loader(m), storer(m), reader(m) {}

    void run() {
        Count idle = 0;
        for (bool done = false; !done; cycle++) {
            const Wires w = step();
            done = w.done;
            const bool progress = w.beat || w.row_taken || w.tile_load || w.push || w.do_data() || w.do_beat();
            idle = progress ? 0 : idle + 1;
            if (idle < STANDSTILL) continue;
            job.stuck_at = boot.state == Boot::RUN ? issuer.index : 0;
            return;
        }
        job.spans[2 * issuer.index + 1] = job.cycles = cycle;
        job.beats_read = memory.beats_read;
        job.beats_written = memory.beats_written;
    }

private:
    // One cycle; returns its signals.
    Wires step() {
        Wires w{};
        offer(w);
        const bool booting = issuer.state == Walker::IDLE;
        issuer.step(w, m);
        stager.step(w, m);
        loader.step(w, m);
        serialiser.step(w, m);
        issuer.exchange(w);
        fetcher.step(w, m);
        boot.step(w, m);
        fetcher.ask(w);
        router.step(w, m);
        storer.step(w, m);
        reader.step(w, m);
        writer.step(w, m);
        memory.step(w, m, cycle);
        queues.step(w);
        count(w, booting);
        return w;
    }

    void offer(Wires& w) const {
        memory.offer(w, m, cycle);
        reader.offer(w, m);
        writer.offer(w, m);
        boot.offer(w);
        issuer.offer(w, m);
        stager.offer(w);
        fetcher.offer(w);
        loader.offer(w);
        serialiser.offer(w, m);
        router.offer(w);
        storer.offer(w);
    }

    // What was waited for.
    void count(Wires& w, bool booting) {
        const Count i = booting ? 0 : w.issuer_index;
        if (booting ? w.begun : issuer.index != i) job.spans[2 * i + 1] = job.spans[2 * i + 2] = cycle + 1;
        if (stager.index != w.stager_index) job.ahead[2 * w.stager_index] = cycle + 1;
        if (fetcher.index != w.fetcher_index) job.ahead[2 * w.fetcher_index + 1] = cycle + 1;
        if (w.issuer_waits == ISSUER_TILE) {
            if (w.starved) w.issuer_waits = ISSUER_WEIGHTS;
            if (w.loader_waits == LOADER_STAGER) w.issuer_waits = ISSUER_STAGER;
        }
        add(w.issuer_waits, i);
        add(w.stager_waits, booting ? 0 : w.stager_index);
        add(w.loader_waits, booting ? 0 : w.stager_index);
        add(w.fetcher_waits, booting ? 0 : w.fetcher_index);
        add(w.reader_waits, i);
        add(w.memory_waits, i);
    }

    void add(Wait wait, Count index) {
        if (wait != NO_WAIT) job.waits[index * WAITS + wait]++;
    }

    Job& job;
    const Machine& m;
    Queues queues;
    Boot boot;
    Issuer issuer;
    Stager stager;
    Fetcher fetcher;
    Loader loader;
    Serialiser serialiser;
    Router router;
    Storer storer;
    Reader reader;
    Writer writer;
    Memory memory;
    Count cycle = 0;
};

}  // namespace

extern "C" void cycles_run(Job* job) { Model(*job).run(); }
