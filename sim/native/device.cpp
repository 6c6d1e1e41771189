// The machine as a device in this process: a verilated top, its memory, and a master for its registers. C interface for
// ctypes; sim/device.py is the other half. A cycle: inputs are set, signals settle with the clock low, both sides look
// at them, the clock rises.

#include <memory>

#include "Vtop.h"
#include "memory.hpp"
#include "verilated.h"
#if VM_TRACE_FST
#include "verilated_fst_c.h"
using Trace = VerilatedFstC;
#elif VM_TRACE
#include "verilated_vcd_c.h"
using Trace = VerilatedVcdC;
#endif

enum Ended : int { OUT_OF_CYCLES = 0, INTERRUPT = 1, PROBLEM = 2 };

class Device {
public:
    Device(uint64_t base, uint64_t size, uint64_t seed)
        : world(base, size, seed), top(new Vtop(&context)), reads(world), writes(world) {
#if VM_TRACE
        context.traceEverOn(true);
#endif
        top->rst = 1;
        for (int i = 0; i < 4; i++) step();
        top->rst = 0;
        step();
    }
    ~Device() {
        end_trace();
        top->final();
    }

    // A top need not have these ports.
    void state_build(const uint32_t (&digest)[4], uint32_t clock_hz) { tie(*top, digest, clock_hz, 0); }

    void step() {
        settle();
        rise();
    }

    Ended run(uint64_t cycles) {
        for (uint64_t i = 0; i < cycles; i++) {
            if (top->irq) return INTERRUPT;
            if (!world.problem.empty()) return PROBLEM;
            step();
        }
        return top->irq ? INTERRUPT : world.problem.empty() ? OUT_OF_CYCLES : PROBLEM;
    }

    // Both return the response, or -1 if there was none in `cycles`. With stalls, address and data come apart.
    int read_register(uint32_t offset, uint32_t* value, uint64_t cycles) {
        uint32_t delay = hold_back();
        bool sent = false;
        top->s_axil_araddr = offset;
        for (uint64_t i = 0; i < cycles; i++) {
            top->s_axil_arvalid = !sent && !delay;
            top->s_axil_rready = 1;
            if (delay) delay--;
            step_lite();
            sent |= top->s_axil_arvalid && lite.arready;
            if (!lite.rvalid) continue;
            top->s_axil_arvalid = top->s_axil_rready = 0;
            *value = lite.rdata;
            return lite.rresp;
        }
        return -1;
    }

    int write_register(uint32_t offset, uint32_t value, uint64_t cycles) {
        uint32_t address_delay = hold_back(), data_delay = hold_back();
        bool address_sent = false, data_sent = false;
        top->s_axil_awaddr = offset;
        top->s_axil_wdata = value;
        top->s_axil_wstrb = 0xF;
        for (uint64_t i = 0; i < cycles; i++) {
            top->s_axil_awvalid = !address_sent && !address_delay;
            top->s_axil_wvalid = !data_sent && !data_delay;
            top->s_axil_bready = 1;
            if (address_delay) address_delay--;
            if (data_delay) data_delay--;
            step_lite();
            address_sent |= top->s_axil_awvalid && lite.awready;
            data_sent |= top->s_axil_wvalid && lite.wready;
            if (!lite.bvalid) continue;
            top->s_axil_awvalid = top->s_axil_wvalid = top->s_axil_bready = 0;
            return lite.bresp;
        }
        return -1;
    }

    void open_trace(const char* path) {
#if VM_TRACE
        trace = std::make_unique<Trace>();
        top->trace(trace.get(), 99);
        trace->open(path);
#else
        (void)path;
#endif
    }

    void end_trace() {
#if VM_TRACE
        if (trace) trace->close();
        trace.reset();
#endif
    }

    World world;
    VerilatedContext context;
    std::unique_ptr<Vtop> top;
    ReadSide<Vtop> reads;
    WriteSide<Vtop> writes;

private:
    template <class Top>
    static auto tie(Top& top, const uint32_t (&digest)[4], uint32_t clock_hz, int) -> decltype(top.digest, void()) {
        for (int i = 0; i < 4; i++) top.digest[i] = digest[i];
        top.clock_hz = clock_hz;
    }
    template <class Top>
    static void tie(Top&, const uint32_t (&)[4], uint32_t, long) {}

    uint32_t hold_back() { return world.settings.stall_parts ? world.random.below(4) : 0; }

    void settle() {
        reads.drive(*top);
        writes.drive(*top);
        top->clk = 0;
        top->eval();
        dump(0);
    }

    void rise() {
        if (!top->rst) {
            reads.sample(*top);
            writes.sample(*top);
        }
        top->clk = 1;
        top->eval();
        dump(1);
        world.cycle++;
    }

    // A step that remembers the slave's signals as they were before the clock rose.
    void step_lite() {
        settle();
        lite = {top->s_axil_arready, top->s_axil_rvalid, top->s_axil_rresp,  top->s_axil_rdata,
                top->s_axil_awready, top->s_axil_wready, top->s_axil_bvalid, top->s_axil_bresp};
        rise();
    }

    void dump(int half) {
#if VM_TRACE
        if (trace) trace->dump((world.cycle * 2 + half) * 5);
#else
        (void)half;
#endif
    }

    struct {
        uint8_t arready, rvalid;
        uint8_t rresp;
        uint32_t rdata;
        uint8_t awready, wready, bvalid;
        uint8_t bresp;
    } lite{};
#if VM_TRACE
    std::unique_ptr<Trace> trace;
#endif
};

extern "C" {
Device* device_new(uint64_t base, uint64_t size, uint64_t seed) {
    try {
        return new Device(base, size, seed);
    } catch (const std::bad_alloc&) {
        return nullptr;
    }
}
void device_delete(Device* d) { delete d; }
uint8_t* device_memory(Device* d) { return d->world.memory.bytes; }
uint64_t device_cycles(Device* d) { return d->world.cycle; }
const char* device_problem(Device* d) { return d->world.problem.c_str(); }
void device_settings(Device* d, const Settings* s) { d->world.settings = *s; }
void device_trace(Device* d, const char* path) { d->open_trace(path); }
void device_build(Device* d, const uint32_t (&digest)[4], uint32_t clock_hz) { d->state_build(digest, clock_hz); }
int device_run(Device* d, uint64_t cycles) { return d->run(cycles); }
void device_step(Device* d, uint64_t cycles) {
    while (cycles--) d->step();
}
int device_read(Device* d, uint32_t offset, uint32_t* value, uint64_t cycles) {
    return d->read_register(offset, value, cycles);
}
int device_write(Device* d, uint32_t offset, uint32_t value, uint64_t cycles) {
    return d->write_register(offset, value, cycles);
}
void device_fault(Device* d, uint64_t begin, uint64_t end, int response, int reads, int writes) {
    d->world.memory.faults.push_back({begin, end, Response(response), bool(reads), bool(writes)});
}
void device_no_faults(Device* d) { d->world.memory.faults.clear(); }
void device_traffic(Device* d, uint64_t (&out)[4]) {
    out[0] = d->reads.beats, out[1] = d->reads.bursts, out[2] = d->writes.beats, out[3] = d->writes.bursts;
}
}
