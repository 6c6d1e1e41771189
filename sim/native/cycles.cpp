// The machine's control without its data, cycle by cycle: what hw/ does, state by state, under memory.hpp's memory.
// C interface for ctypes; sim/cycles.py is the other half.
//
// It is written as the RTL is: `now` holds all registers, a unit's function sets their next values and the signals
// (`Wires`) that units asked after it look at. States and signals bear the RTL's names.

#include <algorithm>
#include <bitset>
#include <cstdint>
#include <deque>
#include <vector>

// Written by sim/cycles.py: enumerations and fields of the command set, `Machine` (the constants of hw/ for a Config,
// and the memory's settings), `Wait` (what can be waited for).
#include "facts.hpp"

namespace {

using Count = int64_t;

constexpr Count STANDSTILL = 1 << 20;  // cycles without progress after which there will be none
constexpr Count ROUTES = 256;          // values of the counters of ROUTEs
constexpr Count MEMORY_AHEAD = 64;     // beats that the memory takes before their address

// A bit as it was `cycles` ago.
struct Delay {
    std::bitset<128> line;
    bool out(Count cycles) const { return line[cycles - 1]; }
    void shift(bool in) { (line <<= 1)[0] = in; }
};

// amaranth.lib.fifo.SyncFIFOBuffered; hw.dma._Buffer is one whose depth is one more than its RAM's.
struct Buffer {
    Count inner_level = 0;
    bool r_rdy = false;

    void update(Count depth, bool w_en, bool r_en) {
        const bool do_write = w_en && inner_level != depth - 1;
        const bool do_inner_read = inner_level && (!r_rdy || r_en);
        inner_level += do_write - do_inner_read;
        r_rdy = do_inner_read || (r_rdy && !r_en);
    }
};

// hw.loader.Gearbox: its signals follow from those at its inputs.
struct Gearbox {
    bool narrow = true;  // items no wider than beats
    Count ratio = 1, position = 0;

    Gearbox(Count bus_width, Count width)
        : narrow(width <= bus_width), ratio(narrow ? bus_width / width : width / bus_width) {}
    bool final() const { return position == ratio - 1; }
    bool valid(bool beat, bool clear = false) const { return beat && !clear && (narrow || final()); }
    bool ready(bool beat, bool item_ready, bool clear = false) const {
        if (narrow) return (valid(beat, clear) && item_ready && final()) || (clear && position);
        return !clear && (!final() || item_ready);
    }
    void update(bool beat, bool item_ready, bool clear = false) {
        const bool moves = narrow ? valid(beat, clear) && item_ready : beat && ready(beat, item_ready, clear);
        if (moves) position = final() ? 0 : position + 1;
        if (narrow && clear) position = 0;
    }
};

// hw.dma._Splitter and the registered address channel behind it
struct Bursts {
    Count index = 0, left = 0;  // of the request
    Count cut = 0;              // beats of the burst cut off it, 0: none
    Count beats = 0;            // of the burst in the address channel, 0: not VALID

    bool busy() const { return left || cut; }
    bool do_burst(bool ready, bool allow) const { return cut && (!beats || ready) && allow; }

    void update(Count chunk, bool ready, bool do_burst, bool do_request, Count first_beat, Count request_beats) {
        if (!beats || ready) beats = do_burst ? cut : 0;
        if (do_burst) {
            cut = 0;
        } else if (!cut) {
            cut = std::min(left, chunk - index);
            index = 0, left -= cut;
        }
        if (do_request) index = first_beat % chunk, left = request_beats;
    }
};

// hw.sequencer.Walker
struct Walker {
    enum State { IDLE, FETCH, TAKE, DECODE, RUN, LOAD, MATMUL, ROUTE_START, ROUTE, STORE, END } state = IDLE;
    Count index = 1, command = 0, seen = 0;
    bool known = false, empty = false, filling = false;  // as they were a cycle ago
};

// hw.sequencer's request to the reader
struct Request {
    bool valid = false;
    Count beat = 0, beats = 0;
};

struct Boot {
    enum State { FIRST, CHECK, REST, STORE, CLEAR, RUN } state = FIRST;
    Gearbox box;
    Count left = 0;
};

struct Issuer : Walker {
    bool tile_written = false, parameters_written = false;
    Count routes = 0, routes_begun = 0, settle = 0;
    Count row = 0, feature = 0, channel = 0, streamed = 0, stationary = 0, gap = 0;
    bool odd = false;
    Delay written;
};

struct Loader {
    enum State { IDLE, DROP, LOAD, SETTLE, PARAMETERS, COLUMNS, OFFSET, TILE, READ, WAIT } state = IDLE;
    Gearbox chunks, columns, words;
    Count digit = 0, feature = 0, channel = 0, index = 0, count = 0;
    Delay read_last;
};

struct Router {
    enum Scan { SCAN_IDLE, READ, SCAN, HAND, WAIT } scan = SCAN_IDLE;
    enum Turns { FREE, ASK, FEED, TURN } turns = FREE;
    Count row = 0, expert = 0, lane = 0, asked = 0;
    Count left = 0, place = 0, other = 0, other_lane = 0, age = 0, settle = 0;
    Delay arrived, selected;
};

struct Storer {
    Gearbox box;
    Buffer buffer;
    bool busy = false;
    Count asked = 0, gone = 0, level = 0;
    Delay read;
};

struct Reader {
    Bursts bursts;
    Buffer buffer;  // of words
    Count free = 0, place = 0;
};

struct Writer {
    Bursts bursts;
    Count unanswered = 0, left = 0, begun = 0;  // begun: bursts in its FIFO
    bool active = false, wvalid = false;
};

struct Registers {
    Boot boot;
    Issuer issuer;
    Walker stager, fetcher;
    Request request;
    Loader loader;
    Router router;
    Storer storer;
    Reader reader;
    Writer writer;
};

// Signals between units; low or zero unless driven in this cycle.
struct Wires {
    bool arready, rvalid, awready, wready, bvalid;
    Request asked;
    bool read_ready, data_valid, data_ready;  // reader: request, data
    bool write_valid, write_ready, beats_valid, beats_ready;  // writer: request, data
    Count write_beat, write_beats;
    bool do_read_burst, do_write_burst;
    bool begun, done;
    bool loader_allowed, tile_done, tile_free, parameters_done, parameters_free, use_tile, use_parameters;
    bool weights_ready, starved, tile_load;
    bool beat, row_done, router_start, storer_start, push;
    Wait issuer_waits = NO_WAIT, stager_waits = NO_WAIT, fetcher_waits = NO_WAIT;
    Wait loader_waits = NO_WAIT, reader_waits = NO_WAIT, memory_waits = NO_WAIT;
};

class Memory {
public:
    Count beats_read = 0, beats_written = 0;

    void drive(Wires& w, const Machine& m, Count cycle) {
        w.arready = Count(reads.size()) < m.outstanding;
        w.rvalid = !reads.empty() && cycle >= reads.front().ready && cycle >= next_read;
        w.awready = Count(begun.size() + answers.size()) < m.outstanding;
        w.wready = ahead < MEMORY_AHEAD && cycle >= next_write;
        w.bvalid = !answers.empty() && cycle >= answers.front();
        if (w.rvalid) return;
        const bool late = !reads.empty() && cycle < reads.front().ready;
        w.memory_waits = reads.empty() ? MEMORY_REQUEST : late ? MEMORY_LATENCY : MEMORY_BANDWIDTH;
    }

    // `read`, `write`: beats of the bursts in the address channels, or 0.
    void sample(const Wires& w, const Machine& m, Count cycle, Count read, Count write, bool wvalid) {
        if (w.rvalid) {
            beats_read++;
            next_read = cycle + m.cycles_per_beat;
            if (!--reads.front().left) reads.pop_front();
        }
        if (read && w.arready) reads.push_back({read, cycle + m.latency});
        if (write && w.awready) begun.push_back(write);
        if (wvalid && w.wready) {
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

// What the caller gives and gets; the same fields, in the same order, are in sim/cycles.py.
struct Job {
    const Machine* machine;
    const Command* commands;
    Count command_count;
    const Count* lengths;  // [ROUTEs][max_experts], of the queues
    const Count* firsts;   // [ROUTEs][max_experts], the push that begins the queue
    Count* spans;          // [commands][2], first cycle and end
    Count* waits;          // [commands][WAITS]
    Count cycles, beats_read, beats_written;
    Count stuck_at;  // command that never ends, or -1
};

class Model {
public:
    explicit Model(Job& job)
        : job(job), m(*job.machine), commands(job.commands), now(initial(m, job.command_count)), next(now),
          lengths(m.max_experts) {}

    void run() {
        Count idle = 0;
        for (bool done = false; !done; cycle++) {
            w = Wires();
            step();
            done = w.done;
            const bool progress = w.beat || w.tile_load || w.push || (w.data_valid && w.data_ready) ||
                                  (w.beats_valid && w.beats_ready);
            idle = progress ? 0 : idle + 1;
            if (idle < STANDSTILL) continue;
            job.stuck_at = now.boot.state == Boot::RUN ? now.issuer.index : 0;
            return;
        }
        job.spans[2 * now.issuer.index + 1] = job.cycles = cycle;
        job.beats_read = memory.beats_read;
        job.beats_written = memory.beats_written;
    }

private:
    static Registers initial(const Machine& m, Count commands) {
        Registers r{
            .boot = {.box = {m.word_width, m.command_width}, .left = commands},
            .issuer = {},
            .stager = {},
            .fetcher = {},
            .loader = {.chunks = {m.word_width, m.chunk_width},
                       .columns = {m.word_width, m.columns_width},
                       .words = {m.word_width, m.words_width},
                       .read_last = {}},
            .router = {},
            .storer = {.box = {m.chunk_width, m.bus_width}, .buffer = {}, .read = {}},
            .reader = {.bursts = {}, .buffer = {}, .free = m.fifo_beats},
            .writer = {},
        };
        return r;
    }

    void step() {
        memory.drive(w, m, cycle);
        offer();
        issue();
        load();
        exchange();
        stage();
        fetch();
        boot();
        route();
        store();
        read();
        write();
        memory.sample(w, m, cycle, now.reader.bursts.beats, now.writer.bursts.beats, now.writer.wvalid);
        count();
        if (w.router_start) clear();
        if (w.push) push();
        now = next;
    }

    // What the DMA engines' registers say before anyone asks them.
    void offer() {
        const Reader& r = now.reader;
        w.do_read_burst = r.bursts.do_burst(w.arready, r.free >= m.read_chunk);
        w.read_ready = !r.bursts.left;
        w.data_valid = r.buffer.r_rdy;
        if (!w.do_read_burst)
            w.reader_waits = !r.bursts.busy() ? READER_REQUEST : r.free < m.read_chunk ? READER_ROOM : READER_MEMORY;
        const Writer& v = now.writer;
        const bool allow = v.begun != m.bursts_ahead && v.unanswered != m.bursts_unanswered;
        w.do_write_burst = v.bursts.do_burst(w.awready, allow);
        w.write_ready = !v.bursts.left;
        w.beats_ready = v.active && (!v.wvalid || w.wready);
        w.begun = now.boot.state == Boot::RUN;
    }

    // --- hw.dma ---

    void read() {
        Reader& n = next.reader;
        const Request& q = now.request;
        const bool do_leave = w.data_valid && w.data_ready;
        const bool whole = w.rvalid && now.reader.place == m.word_beats - 1;
        n.free += do_leave * m.word_beats - (w.do_read_burst ? now.reader.bursts.cut : 0);
        if (w.rvalid) n.place = whole ? 0 : now.reader.place + 1;
        n.buffer.update(m.fifo_beats / m.word_beats + 1, whole, do_leave);
        n.bursts.update(
            m.read_chunk, w.arready, w.do_read_burst, q.valid && w.read_ready, q.beat, q.beats);
        if (q.valid) next.request.valid = !w.read_ready;
        else next.request = w.asked;
    }

    void write() {
        const Writer& r = now.writer;
        Writer& n = next.writer;
        const bool do_beat = w.beats_ready && w.beats_valid;
        const bool do_begin = r.begun && (!r.active || (do_beat && !r.left));
        n.unanswered += w.do_write_burst - w.bvalid;
        n.begun += w.do_write_burst - do_begin;
        if (!r.wvalid || w.wready) n.wvalid = do_beat;
        if (do_beat) n.left = r.left - 1, n.active = r.left != 0;
        if (do_begin) n.left = begun.front() - 1, n.active = true, begun.pop_front();
        if (w.do_write_burst) begun.push_back(r.bursts.cut);
        n.bursts.update(
            m.write_chunk, w.awready, w.do_write_burst, w.write_valid && w.write_ready, w.write_beat, w.write_beats);
    }

    // --- hw.sequencer ---

    const Command& at(const Walker& r) const { return commands[r.command]; }
    bool queued(const Walker& r) const { return at(r).kind == KIND_MATMUL && at(r).queue != QUEUE_NONE; }
    Count length(const Walker& r) const { return queued(r) ? lengths[at(r).expert] : at(r).rows; }

    // States that all walkers begin with; `grant`: no walker before this one asks for a command.
    void walk(const Walker& r, Walker& n, bool grant) {
        if (r.state == Walker::IDLE && w.begun) n.state = Walker::FETCH;
        if (r.state == Walker::FETCH && grant) n.state = Walker::TAKE;
        if (r.state == Walker::TAKE) n.state = Walker::DECODE, n.command = r.index;
        if (r.state == Walker::DECODE) n.state = Walker::RUN;
        n.known = !queued(r) || r.seen == now.issuer.routes;
        n.empty = queued(r) && !length(r);
        n.filling = queued(r) && length(r) && r.seen == now.issuer.routes_begun;
    }

    void advance(const Walker& r, Walker& n) {
        n.index = r.index + 1;
        if (at(r).kind == KIND_ROUTE) n.seen = (r.seen + 1) % ROUTES;
        n.state = Walker::FETCH;
    }

    void boot() {
        const Boot& r = now.boot;
        Boot& n = next.boot;
        if (r.state == Boot::RUN) {
            w.data_ready = w.weights_ready;
            return;
        }
        const bool beat = w.data_valid && (r.state == Boot::CHECK || r.state == Boot::STORE), item = r.box.valid(beat);
        const bool clear = r.state == Boot::REST || r.state == Boot::CLEAR;
        w.data_ready = r.box.ready(beat, item, clear);
        n.box.update(beat, item, clear);
        switch (r.state) {
        case Boot::FIRST:
        case Boot::REST: {
            const bool first = r.state == Boot::FIRST;
            const Count words = first ? 1 : (r.left - 1) / m.word_commands + 1;
            w.asked = {true, m.first_beat, words * m.word_commands * m.command_beats};
            if (!now.request.valid) n.state = first ? Boot::CHECK : Boot::STORE;
            break;
        }
        case Boot::CHECK:
            if (item) n.state = Boot::REST;
            break;
        case Boot::STORE:
            if (item) n.left = r.left - 1;
            if (item && r.left == 1) n.state = Boot::CLEAR;
            break;
        case Boot::CLEAR: n.state = Boot::RUN; break;
        case Boot::RUN: break;
        }
    }

    void fetch() {
        const Walker& r = now.fetcher;
        Walker& n = next.fetcher;
        walk(r, n, now.issuer.state != Walker::FETCH && now.stager.state != Walker::FETCH);
        w.fetcher_waits = FETCHER_COMMAND;
        if (r.state == Walker::IDLE) w.fetcher_waits = FETCHER_BOOT;
        if (r.state == Walker::END) w.fetcher_waits = FETCHER_END;
        if (r.state != Walker::RUN) return;
        const Command& c = at(r);
        const bool streams = c.kind == KIND_LOAD || (c.kind == KIND_MATMUL && c.b_source == STATIONARY_MEMORY);
        if (c.kind == KIND_END) {
            n.state = Walker::END;
        } else if (!c.expected && !r.known && !r.filling) {
            w.fetcher_waits = FETCHER_ROUTE;
        } else if (streams && (c.expected || !r.empty)) {
            w.asked = {true, c.dma_address / m.beat_bytes, c.dma_beats};
            w.fetcher_waits = now.request.valid ? FETCHER_READER : NO_WAIT;
            if (!now.request.valid) advance(r, n);
        } else {
            advance(r, n);
        }
    }

    void stage() {
        const Walker& r = now.stager;
        Walker& n = next.stager;
        walk(r, n, now.issuer.state != Walker::FETCH);
        w.stager_waits = STAGER_COMMAND;
        if (r.state == Walker::IDLE) w.stager_waits = STAGER_BOOT;
        if (r.state == Walker::END) w.stager_waits = STAGER_END;
        if (r.state == Walker::LOAD) {
            w.stager_waits = NO_WAIT;
            if (now.loader.state == Loader::IDLE) advance(r, n);
        }
        if (r.state != Walker::RUN) return;
        const Command& c = at(r);
        if (c.kind == KIND_END) {
            n.state = Walker::END;
        } else if (!r.known) {
            w.stager_waits = STAGER_ROUTE;
        } else if ((c.kind == KIND_LOAD || c.kind == KIND_MATMUL) && (c.expected || !r.empty)) {
            // The loader, asked before, begins with the next cycle.
            next.loader.state = r.empty ? Loader::DROP : first_state(c);
            n.state = Walker::LOAD;
        } else {
            advance(r, n);
        }
    }

    void issue() {
        const Issuer& r = now.issuer;
        Issuer& n = next.issuer;
        const bool drained = r.settle == 0, same = r.index == now.stager.index;
        if (!drained) n.settle = r.settle - 1;
        n.odd = !r.odd;
        walk(r, n, true);
        switch (r.state) {
        case Walker::IDLE: w.issuer_waits = ISSUER_BOOT; break;
        case Walker::FETCH:
        case Walker::TAKE:
        case Walker::DECODE: w.issuer_waits = ISSUER_COMMAND; break;
        case Walker::RUN:
            w.issuer_waits = ISSUER_SETTLE;
            if (drained) begin(same);
            break;
        case Walker::MATMUL:
            w.loader_allowed = drained && same;
            if (beats()) {
                n.settle = m.datapath_latency;
                advance(r, n);
            }
            break;
        case Walker::ROUTE_START:
            w.issuer_waits = ISSUER_ROUTE;
            w.router_start = true;
            n.routes_begun = (r.routes_begun + 1) % ROUTES;
            n.state = Walker::ROUTE;
            break;
        case Walker::ROUTE:
            w.issuer_waits = ISSUER_ROUTE;
            if (now.router.scan == Router::SCAN_IDLE && now.router.turns == Router::FREE && !now.router.settle) {
                n.routes = (r.routes + 1) % ROUTES;
                advance(r, n);
            }
            break;
        case Walker::STORE:
            w.issuer_waits = ISSUER_STORE;
            if (!now.storer.busy) advance(r, n);
            break;
        case Walker::END:
            w.issuer_waits = ISSUER_END;
            w.done = !now.writer.bursts.busy() && !now.writer.unanswered && now.fetcher.state == Walker::END &&
                     now.stager.state == Walker::END;
            break;
        case Walker::LOAD: break;  // the stager's
        }
        n.written.shift(w.row_done);
        w.tile_free = !r.tile_written;
        w.parameters_free = !r.parameters_written;
    }

    // The next tile and parameters: written by the loader, used by a beat.
    void exchange() {
        Issuer& n = next.issuer;
        if (w.tile_done || w.use_tile) n.tile_written = w.tile_done;
        if (w.parameters_done || w.use_parameters) n.parameters_written = w.parameters_done;
    }

    // The issuer's RUN when all before has left the datapath.
    void begin(bool same) {
        const Issuer& r = now.issuer;
        Issuer& n = next.issuer;
        const Command& c = at(r);
        w.issuer_waits = ISSUER_COMMAND;
        switch (c.kind) {
        case KIND_LOAD:
            w.loader_allowed = same;
            w.issuer_waits = ISSUER_LOAD;
            if (now.stager.index > r.index) advance(r, n);
            break;
        case KIND_STORE:
            w.write_valid = true, w.write_beat = c.dma_address / m.beat_bytes, w.write_beats = c.dma_beats;
            w.issuer_waits = ISSUER_STORE;
            w.storer_start = w.write_ready;
            if (w.write_ready) n.state = Walker::STORE;
            break;
        case KIND_MATMUL:
            n.state = Walker::MATMUL;
            n.odd = false;
            if (r.empty) advance(r, n);
            break;
        case KIND_ROUTE: n.state = Walker::ROUTE_START; break;
        case KIND_END: n.state = Walker::END; break;
        default: break;  // BAD_COMMAND stops the machine
        }
    }

    // The issuer's MATMUL: a beat, or what it waits for; returns whether it was the last one.
    bool beats() {
        const Issuer& r = now.issuer;
        Issuer& n = next.issuer;
        const Command& c = at(r);
        const Count rows = length(r), digits_a = m.splits_streamed ? c.a_wide : 0;
        const bool last_slice = r.feature + m.inputs >= c.depth;
        const bool last_digit = r.streamed == digits_a && r.stationary + 1 == c.b_digits;
        const bool last_group = r.channel + m.outputs >= c.columns, last_row = r.row + 1 == rows;
        const bool new_tile = r.row == 0 && r.streamed == 0;
        const bool ends = last_digit && last_slice;
        const bool new_channels = r.row == 0 && ends && c.b_source == STATIONARY_MEMORY;
        const bool waits = (new_tile && !r.tile_written) || (new_channels && !r.parameters_written);
        const bool holds = m.shared_port && ends && c.residual && r.odd;
        const bool issue = !waits && r.gap == 0 && !holds;
        if (r.gap) n.gap = r.gap - 1;
        if (!issue) w.issuer_waits = waits ? ISSUER_TILE : r.gap ? ISSUER_GAP : ISSUER_PORT;
        if (!issue) return false;
        w.beat = true;
        w.row_done = ends;
        w.use_tile = new_tile;
        w.use_parameters = new_channels;
        n.row = last_row ? 0 : r.row + 1;
        if (!last_row) return false;
        if (rows < m.period) n.gap = m.period - rows;
        n.streamed = r.streamed == digits_a ? 0 : 1;
        if (r.streamed == digits_a) n.stationary = r.stationary + 1 == c.b_digits ? 0 : r.stationary + 1;
        if (!last_digit) return false;
        n.feature = last_slice ? 0 : r.feature + m.inputs;
        if (!last_slice) return false;
        n.channel = last_group ? 0 : r.channel + m.outputs;
        return last_group;
    }

    // --- hw.loader ---

    static Loader::State first_state(const Command& c) {
        if (c.kind == KIND_LOAD) return Loader::LOAD;
        return c.b_source == STATIONARY_MEMORY ? Loader::PARAMETERS : Loader::OFFSET;
    }

    void load() {
        const Loader& r = now.loader;
        Loader& n = next.loader;
        const Command& c = at(now.stager);
        const bool stored = c.b_source == STATIONARY_MEMORY;
        bool read_last = false;
        switch (r.state) {
        case Loader::IDLE:
            n.digit = n.feature = n.channel = n.index = n.count = 0;
            w.loader_waits = LOADER_STAGER;
            break;
        case Loader::DROP:
            w.weights_ready = true;
            w.starved = !weights_valid();
            if (w.starved) w.loader_waits = LOADER_WEIGHTS;
            else n.count = r.count + m.word_beats;
            if (n.count == c.dma_beats) n.state = Loader::IDLE;
            break;
        case Loader::LOAD:
            if (!w.loader_allowed) {
                w.loader_waits = LOADER_ISSUER;
            } else if (take(r.chunks, n.chunks)) {
                n.count = r.count + 1;
                if (r.count + 1 == c.rows) n.state = Loader::SETTLE;
            }
            break;
        case Loader::SETTLE:
            n.index = r.index + 1;
            if (r.index == m.write_latency + 1) n.state = Loader::IDLE;
            break;
        case Loader::PARAMETERS:
            if (!w.parameters_free) {
                w.loader_waits = LOADER_PARAMETERS;
            } else if (take(r.words, n.words)) {
                n.index = r.index + m.parameters_at_once;
                if (n.index >= m.outputs) {
                    w.parameters_done = true;
                    n.index = 0;
                    n.state = Loader::COLUMNS;
                }
            }
            break;
        case Loader::COLUMNS:
            if (!r.index && !w.tile_free) {
                w.loader_waits = LOADER_TILE;
            } else if (take(r.columns, n.columns)) {
                w.tile_load = true;
                n.index = r.index + m.columns_at_once;
                if (n.index >= m.outputs) next_tile(c, stored);
            }
            break;
        case Loader::OFFSET: n.state = Loader::TILE; break;
        case Loader::TILE:
            if (w.tile_free && w.loader_allowed) n.state = Loader::READ;
            else w.loader_waits = w.tile_free ? LOADER_ISSUER : LOADER_TILE;
            break;
        case Loader::READ: {
            if (m.shared_port && now.issuer.written.out(m.datapath_write)) {
                w.loader_waits = LOADER_PORT;
                break;
            }
            const bool by_row = c.b_source == STATIONARY_ROWS;
            const Count left = by_row ? c.depth - r.feature : c.columns - r.channel;
            const Count limit = by_row ? m.inputs : m.outputs;
            w.tile_load = true;
            n.index = r.index + 1;
            read_last = r.index + 1 == limit || r.index + 1 == left;
            if (read_last) n.state = Loader::WAIT;
            break;
        }
        case Loader::WAIT:
            if (r.read_last.out(m.read_latency + 1)) next_tile(c, stored);
            break;
        }
        n.read_last.shift(read_last);
    }

    // Select a box and take an item; returns whether there was one.
    bool take(const Gearbox& box, Gearbox& n) {
        w.weights_ready = box.ready(weights_valid(), true);
        n.update(weights_valid(), true);
        w.starved = !weights_valid();
        if (w.starved) w.loader_waits = LOADER_WEIGHTS;
        return box.valid(weights_valid());
    }

    bool weights_valid() const { return w.data_valid && w.begun; }

    void next_tile(const Command& c, bool stored) {
        const Loader& r = now.loader;
        Loader& n = next.loader;
        const bool final_digit = r.digit + 1 == c.b_digits, final_slice = r.feature + m.inputs >= c.depth;
        const bool final_group = r.channel + m.outputs >= c.columns;
        w.tile_done = true;
        n.index = 0;
        n.digit = final_digit ? 0 : r.digit + 1;
        if (final_digit) n.feature = final_slice ? 0 : r.feature + m.inputs;
        if (final_digit && final_slice) n.channel = r.channel + m.outputs;
        if (final_digit && final_slice && final_group) n.state = Loader::IDLE;
        else if (!stored) n.state = Loader::OFFSET;
        else n.state = final_digit && final_slice ? Loader::PARAMETERS : Loader::COLUMNS;
    }

    // --- hw.router ---

    void route() {
        const Command& c = at(now.issuer);
        const bool free = now.router.turns == Router::FREE, hand = now.router.scan == Router::HAND && free;
        scan(c, free);
        turns(c, hand);
    }

    void scan(const Command& c, bool free) {
        const Router& r = now.router;
        Router& n = next.router;
        bool last_asked = false;
        switch (r.scan) {
        case Router::SCAN_IDLE:
            n.row = n.expert = n.lane = n.asked = 0;
            if (w.router_start) n.scan = Router::READ;
            break;
        case Router::READ:
            last_asked = r.asked == m.router_rows - 1;
            if (r.asked != m.router_rows) n.asked = r.asked + 1;
            if (r.arrived.out(m.read_latency)) n.scan = Router::SCAN;
            break;
        case Router::SCAN:
            n.expert = r.expert + 1;
            n.lane = (r.lane + 1) % m.lanes;
            if (r.expert + 1 == c.columns) n.scan = Router::HAND;
            else if (r.lane == m.lanes - 1) n.scan = Router::READ, n.asked = 0;
            break;
        case Router::HAND:
            if (!free) break;
            n.row = r.row + m.router_rows;
            n.expert = n.lane = n.asked = 0;
            n.scan = c.score_all || n.row >= c.rows ? Router::WAIT : Router::READ;
            break;
        case Router::WAIT:
            if (free) n.scan = r.row >= c.rows ? Router::SCAN_IDLE : Router::READ;
            break;
        }
        n.arrived.shift(last_asked);
    }

    void turns(const Command& c, bool hand) {
        const Router& r = now.router;
        Router& n = next.router;
        const bool turn = r.turns == Router::TURN;
        switch (r.turns) {
        case Router::FREE:
            n.place = n.other = n.other_lane = n.age = 0;
            n.left = std::min(m.router_rows, c.rows - r.row);
            if (hand) n.turns = c.score_all ? Router::ASK : Router::TURN;
            break;
        case Router::ASK:
            n.age = r.age + 1;
            if (r.age == m.read_latency) n.turns = Router::FEED;
            break;
        case Router::FEED:
            n.other = r.other + 1;
            n.other_lane = (r.other_lane + 1) % m.lanes;
            if (r.other + 1 == c.columns) n.turns = Router::TURN;
            else if (r.other_lane == m.lanes - 1) n.turns = Router::ASK, n.age = 0;
            break;
        case Router::TURN:
            n.place = r.place + 1;
            if (n.place != m.max_top_k) break;
            n.place = n.other = n.other_lane = n.age = 0;
            n.left = r.left - 1;
            if (!n.left) n.turns = Router::FREE;
            else if (c.score_all) n.turns = Router::ASK;
            break;
        }
        n.settle = turn ? m.router_latency + 1 : std::max<Count>(r.settle - 1, 0);
        w.push = r.selected.out(m.router_latency);
        n.selected.shift(turn && r.place < c.top_k);
    }

    // hw.router.Queues. Until the ROUTE is done only whether a queue is empty is looked at.
    void push() {
        for (Count e = 0; e < m.max_experts; e++)
            if (job.firsts[routed * m.max_experts + e] == pushes) lengths[e] = job.lengths[routed * m.max_experts + e];
        pushes++;
    }

    void clear() {
        lengths.assign(lengths.size(), 0);
        pushes = 0;
        routed++;
    }

    // --- hw.storer ---

    void store() {
        const Storer& r = now.storer;
        Storer& n = next.storer;
        const Command& c = at(now.issuer);
        const bool read = r.busy && r.asked != c.rows && r.level != m.storer_buffer;
        const bool taken = r.buffer.r_rdy && r.box.ready(r.buffer.r_rdy, w.beats_ready);
        w.beats_valid = r.box.valid(r.buffer.r_rdy);
        n.buffer.update(m.storer_buffer, r.read.out(m.read_latency), taken);
        n.box.update(r.buffer.r_rdy, w.beats_ready);
        n.read.shift(read);
        n.asked += read;
        n.gone += taken;
        n.level += read - taken;
        if (taken && r.gone + 1 == c.rows) n.busy = false;
        if (w.storer_start) n.busy = true, n.asked = n.gone = 0;
    }

    // --- What was waited for ---

    void count() {
        const bool booting = now.issuer.state == Walker::IDLE;
        const Count i = booting ? 0 : now.issuer.index;
        if (booting ? w.begun : next.issuer.index != i) job.spans[2 * i + 1] = job.spans[2 * i + 2] = cycle + 1;
        if (w.issuer_waits == ISSUER_TILE) {
            if (w.starved) w.issuer_waits = ISSUER_WEIGHTS;
            if (w.loader_waits == LOADER_STAGER) w.issuer_waits = ISSUER_STAGER;
        }
        add(w.issuer_waits, i);
        add(w.stager_waits, booting ? 0 : now.stager.index);
        add(w.loader_waits, booting ? 0 : now.stager.index);
        add(w.fetcher_waits, booting ? 0 : now.fetcher.index);
        add(w.reader_waits, i);
        add(w.memory_waits, i);
    }

    void add(Wait wait, Count index) {
        if (wait != NO_WAIT) job.waits[index * WAITS + wait]++;
    }

    Job& job;
    const Machine& m;
    const Command* commands;
    Registers now, next;
    Wires w{};
    Memory memory;
    std::deque<Count> begun;     // beats of the bursts in the writer's FIFO
    std::vector<Count> lengths;  // of the queues
    Count cycle = 0, routed = -1, pushes = 0;
};

}  // namespace

extern "C" void cycles_run(Job* job) { Model(*job).run(); }
