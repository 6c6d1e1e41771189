// An AXI4 memory: answers a master's bursts in order, as late and as haltingly as it is told to, and watches its manners.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <deque>
#include <new>
#include <string>
#include <vector>

#include "limits.hpp"

// What the Python side sets; the same fields, in the same order, are in sim/device.py.
struct Settings {
    uint32_t latency;          // cycles from an address to its first beat, and from a write's last beat to its answer
    uint32_t jitter;           // up to that many cycles more, at random
    uint32_t cycles_per_beat;  // bandwidth, of each direction
    uint32_t refresh_period;   // cycles from one refresh to the next, the first burst begins one; 0: no refresh
    uint32_t refresh_cycles;   // at the end of each period, in which no beat goes either way
    uint32_t outstanding;      // bursts of each direction that are accepted before the first is answered
    uint32_t stall_parts;      // of 65536: how often READY and VALID are held back
};

enum Response : uint8_t { OKAY = 0, SLVERR = 2, DECERR = 3 };

class Random {
public:
    explicit Random(uint64_t seed) : state(seed * 0x9E3779B97F4A7C15u + 0x632BE59BD9B4E019u) {}
    uint32_t below(uint32_t limit) { return limit ? uint32_t((uint64_t(next()) * limit) >> 32) : 0; }
    uint32_t next() {  // xorshift64*
        state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
        return uint32_t((state * 0x2545F4914F6CDD1Du) >> 32);
    }

private:
    uint64_t state;
};

// Decides per cycle; a stall lasts 1 to 15 cycles, 8 on average.
class Stalls {
public:
    bool now(Random& random, uint32_t parts) {
        if (left) return --left, true;
        if (!parts) return false;
        // Flowing cycles between stalls: 8 * (1 - f) / f on average.
        if (random.below(8 * (65536 - parts) + parts) >= parts) return false;
        left = random.below(15);
        return true;
    }

private:
    uint32_t left = 0;
};

class Memory {
public:
    Memory(uint64_t base, uint64_t size) : base(base), size(size) {
        const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;  // pages appear when they are touched
        void* mapped = mmap(nullptr, size, PROT_READ | PROT_WRITE, flags, -1, 0);
        if (mapped == MAP_FAILED) throw std::bad_alloc();
        bytes = static_cast<uint8_t*>(mapped);
    }
    ~Memory() { munmap(bytes, size); }
    Memory(const Memory&) = delete;

    struct Fault {
        uint64_t begin, end;
        Response response;
        bool reads, writes;
    };

    Response respond(uint64_t address, uint32_t count, bool write) const {
        for (const Fault& f : faults)
            if (address < f.end && address + count > f.begin && (write ? f.writes : f.reads)) return f.response;
        return address >= base && address - base <= size - count ? OKAY : DECERR;
    }
    uint8_t* at(uint64_t address) { return bytes + (address - base); }

    const uint64_t base, size;
    uint8_t* bytes;
    std::vector<Fault> faults;
};

// What all sides share.
struct World {
    Memory memory;
    Random random;
    Settings settings{20, 0, 1, 0, 0, 16, 0};
    uint64_t cycle = 0;
    uint64_t first_burst = UINT64_MAX;
    std::string problem;  // the first broken rule

    World(uint64_t base, uint64_t size, uint64_t seed) : memory(base, size), random(seed) {}
    void blame(const std::string& text) {
        if (problem.empty()) problem = "cycle " + std::to_string(cycle) + ": " + text;
    }
    bool stall(Stalls& stalls) { return stalls.now(random, settings.stall_parts); }
    void begin_burst() { first_burst = std::min(first_burst, cycle); }
    bool refreshing() const {
        const uint32_t period = settings.refresh_period;
        return period && cycle >= first_burst && (cycle - first_burst) % period >= period - settings.refresh_cycles;
    }
    uint64_t later() { return cycle + settings.latency + random.below(settings.jitter + 1); }
};

// A channel's VALID and payload must hold until READY.
template <size_t WORDS>
class Steady {
public:
    void check(World& world, const char* channel, bool valid, bool ready, const uint64_t (&now)[WORDS]) {
        if (held && !valid) world.blame(std::string(channel) + "VALID was withdrawn");
        if (held && valid && memcmp(now, payload, sizeof payload))
            world.blame(std::string(channel) + " payload changed before READY");
        held = valid && !ready;
        if (held) memcpy(payload, now, sizeof payload);
    }

private:
    bool held = false;
    uint64_t payload[WORDS] = {};
};

inline void check_burst(World& world, const char* channel, uint64_t address, int beats, int size, int type, int bytes) {
    const std::string name = channel;
    if (type != 1) world.blame(name + "BURST must be INCR (1), not " + std::to_string(type));
    if (1 << size != bytes) world.blame(name + "SIZE must be the bus width, not " + std::to_string(size));
    if (address % bytes) world.blame(name + "ADDR is not a multiple of the beat");
    if ((address ^ (address + uint64_t(beats) * bytes - 1)) >> 12) world.blame(name + ": burst crosses 4 KiB");
}

// `drive` sets the inputs of a cycle, `sample` looks at what the settled signals say at its end.
template <class Top>
class ReadSide {
public:
    explicit ReadSide(World& world) : world(world) {}
    uint64_t beats = 0, bursts = 0;

    void drive(Top& top) {
        top.m_axi_arready = pending.size() < world.settings.outstanding && !world.stall(address_stalls);
        if (!offered && !pending.empty() && world.cycle >= pending.front().ready && world.cycle >= next_beat &&
            !world.refreshing() && !world.stall(data_stalls))
            offer(top);
        top.m_axi_rvalid = offered;
    }

    void sample(Top& top) {
        const uint64_t payload[] = {top.m_axi_araddr, top.m_axi_arlen, top.m_axi_arsize, top.m_axi_arburst};
        steady.check(world, "AR", top.m_axi_arvalid, top.m_axi_arready, payload);
        if (offered && top.m_axi_rready) taken();
        if (!top.m_axi_arvalid || !top.m_axi_arready) return;
        const int count = top.m_axi_arlen + 1;
        check_burst(world, "AR", top.m_axi_araddr, count, top.m_axi_arsize, top.m_axi_arburst, BYTES);
        world.begin_burst();
        pending.push_back({top.m_axi_araddr, count, world.later()});
        bursts++;
    }

private:
    struct Burst {
        uint64_t address;
        int left;
        uint64_t ready;
    };
    static constexpr int BYTES = sizeof(Top::m_axi_rdata);

    void offer(Top& top) {
        const Burst& burst = pending.front();
        const Response response = world.memory.respond(burst.address, BYTES, false);
        if (response == OKAY)
            memcpy(&top.m_axi_rdata, world.memory.at(burst.address), BYTES);
        else
            memset(&top.m_axi_rdata, 0xEE, BYTES);
        top.m_axi_rresp = response;
        top.m_axi_rlast = burst.left == 1;
        offered = true;
    }

    void taken() {
        offered = false;
        beats++;
        next_beat = world.cycle + world.settings.cycles_per_beat;
        pending.front().address += BYTES;
        if (!--pending.front().left) pending.pop_front();
    }

    World& world;
    Steady<4> steady;
    Stalls address_stalls, data_stalls;
    std::deque<Burst> pending;
    uint64_t next_beat = 0;
    bool offered = false;
};

// A burst changes the memory when it is answered, so that nobody may rely on it before.
template <class Top>
class WriteSide {
public:
    explicit WriteSide(World& world) : world(world) {}
    uint64_t beats = 0, bursts = 0;

    void drive(Top& top) {
        top.m_axi_awready = begun.size() + complete.size() < world.settings.outstanding && !world.stall(address_stalls);
        top.m_axi_wready = Count(ahead.size()) < AHEAD && world.cycle >= next_beat && !world.refreshing() &&
                           !world.stall(data_stalls);
        if (!offered && !complete.empty() && world.cycle >= complete.front().ready) offer(top);
        top.m_axi_bvalid = offered;
    }

    void sample(Top& top) {
        sample_address(top);
        sample_data(top);
        if (offered && top.m_axi_bready) {
            offered = false;
            complete.pop_front();
        }
        while (!begun.empty() && !ahead.empty()) store();
    }

private:
    static constexpr int BYTES = sizeof(Top::m_axi_wdata);
    static constexpr int WORDS = (BYTES + 7) / 8;

    struct Beat {
        uint64_t data[WORDS + 2] = {};  // then strobe and last
    };
    struct Burst {
        uint64_t address;
        size_t count;
        std::vector<Beat> beats;
        uint64_t ready;
    };

    void sample_address(Top& top) {
        const uint64_t payload[] = {top.m_axi_awaddr, top.m_axi_awlen, top.m_axi_awsize, top.m_axi_awburst};
        address_steady.check(world, "AW", top.m_axi_awvalid, top.m_axi_awready, payload);
        if (!top.m_axi_awvalid || !top.m_axi_awready) return;
        const int count = top.m_axi_awlen + 1;
        check_burst(world, "AW", top.m_axi_awaddr, count, top.m_axi_awsize, top.m_axi_awburst, BYTES);
        world.begin_burst();
        begun.push_back({top.m_axi_awaddr, size_t(count), {}, 0});
        begun.back().beats.reserve(count);
        bursts++;
    }

    void sample_data(Top& top) {
        Beat beat;
        memcpy(beat.data, &top.m_axi_wdata, BYTES);
        beat.data[WORDS] = top.m_axi_wstrb;
        beat.data[WORDS + 1] = top.m_axi_wlast;
        data_steady.check(world, "W", top.m_axi_wvalid, top.m_axi_wready, beat.data);
        if (!top.m_axi_wvalid || !top.m_axi_wready) return;
        ahead.push_back(beat);
        beats++;
        next_beat = world.cycle + world.settings.cycles_per_beat;
    }

    void store() {
        Burst& burst = begun.front();
        burst.beats.push_back(ahead.front());
        ahead.pop_front();
        const bool last = burst.beats.size() == burst.count;
        if (bool(burst.beats.back().data[WORDS + 1]) != last)
            world.blame("WLAST must come with beat " + std::to_string(burst.count - 1) + ", not otherwise");
        if (!last) return;
        burst.ready = world.later();
        complete.push_back(std::move(burst));
        begun.pop_front();
    }

    void offer(Top& top) {
        const Burst& burst = complete.front();
        const Response response = world.memory.respond(burst.address, BYTES * burst.count, true);
        for (size_t i = 0; i < burst.count && response == OKAY; i++) {
            const auto* from = reinterpret_cast<const uint8_t*>(burst.beats[i].data);
            uint8_t* to = world.memory.at(burst.address + i * BYTES);
            for (int b = 0; b < BYTES; b++)
                if (burst.beats[i].data[WORDS] >> b & 1) to[b] = from[b];
        }
        top.m_axi_bresp = response;
        offered = true;
    }

    World& world;
    Steady<4> address_steady;
    Steady<WORDS + 2> data_steady;
    Stalls address_stalls, data_stalls;
    std::deque<Burst> begun, complete;
    std::deque<Beat> ahead;
    uint64_t next_beat = 0;
    bool offered = false;
};
