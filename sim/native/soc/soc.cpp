// A whole SoC in this process: a verilated top, the bytes on its link, and its memory's model. C interface for ctypes;
// sim/soc.py is the other half. The link takes a byte whenever the SoC is ready for one: nothing is lost, and a byte
// takes as many cycles as the SoC needs.

#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <deque>

#include "Vtop.h"
#include "Vtop___024root.h"
#include "banks.hpp"
#include "verilated.h"

constexpr uint64_t LOOK = 256;  // cycles between looks at a file
constexpr size_t PIECE = 4096;

class Soc {
public:
    Soc() : top(&context) {
        for (int i = 0; i < 16; i++) {  // as long again until the reset has reached everything
            top.rst = i < 8;
            step();
        }
        cycles = 0;
    }
    ~Soc() {
        Verilated::threadContextp(&context);
        top.final();
    }

    // Until so many bytes have come from the SoC, or cycles have passed.
    size_t run(uint64_t most, size_t bytes) {
        for (const uint64_t end = cycles + most; cycles < end && received.size() < bytes;) step();
        return received.size();
    }

    size_t take(uint8_t* data, size_t size) {
        size_t taken = 0;
        for (; taken < size && !received.empty(); received.pop_front()) data[taken++] = received.front();
        return taken;
    }

    // As `run`, the link's other end being an open file that does not block; false if the file is gone.
    bool serve(int file, uint64_t most) {
        uint8_t data[PIECE];
        for (const uint64_t end = cycles + most; cycles < end;) {
            if (to_send.empty()) {
                const ssize_t got = read(file, data, PIECE);
                if (got == 0 || (got < 0 && errno != EAGAIN && errno != EIO)) return false;  // EIO: nobody has it open
                if (got > 0) to_send.insert(to_send.end(), data, data + got);
            }
            run(LOOK, PIECE);
            size_t size = 0;
            while (size < PIECE && size < received.size()) data[size] = received[size], size++;
            const ssize_t written = size ? write(file, data, size) : 0;
            if (written > 0) received.erase(received.begin(), received.begin() + written);
        }
        return true;
    }

    uint64_t cycles = 0;
    std::deque<uint8_t> to_send, received;
    VerilatedContext context;
    // A model with public members enters itself into the thread's context, and leaves it when it is destroyed.
    const int entered = (Verilated::threadContextp(&context), 0);
    Vtop top;

private:
    void step() {
        top.sink_valid = !to_send.empty();
        if (top.sink_valid) top.sink_data = to_send.front();
        top.source_ready = 1;
        top.clk = 0;
        top.eval();
        if (top.sink_valid && top.sink_ready) to_send.pop_front();
        if (top.source_valid) received.push_back(top.source_data);
        top.clk = 1;
        top.eval();
        cycles++;
    }
};

extern "C" {
Soc* soc_new() { return new Soc; }
void soc_delete(Soc* s) { delete s; }
uint64_t soc_cycles(Soc* s) { return s->cycles; }
size_t soc_run(Soc* s, uint64_t cycles, size_t bytes) { return s->run(cycles, bytes); }
int soc_serve(Soc* s, int file, uint64_t cycles) { return s->serve(file, cycles); }
void soc_send(Soc* s, const uint8_t* data, size_t size) { s->to_send.insert(s->to_send.end(), data, data + size); }
size_t soc_take(Soc* s, uint8_t* data, size_t size) { return s->take(data, size); }
void soc_discard(Soc* s) {
    s->to_send.clear();
    s->received.clear();
}
uint8_t* soc_bank(Soc* s, size_t bank) {
    uint8_t* const banks[] = BANKS((*s->top.rootp));
    return banks[bank];
}
}
