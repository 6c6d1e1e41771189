// hw.boot.Boot
#pragma once

#include "parts.hpp"

struct Boot {
    enum State { FIRST, CHECK, REST, STORE, CLEAR, RUN } state = FIRST;
    Gearbox box;
    Count left;  // commands

    Boot(const Machine& m, Count commands) : box(m.word_width, m.command_width), left(commands) {}

    void offer(Wires& w) const { w.begun = state == RUN; }

    void step(Wires& w, const Machine& m) {
        if (state == RUN) {
            w.data_ready = w.weights_ready;
            return;
        }
        const bool beat = w.data_valid && (state == CHECK || state == STORE), item = box.valid(beat);
        const bool clear = state == REST || state == CLEAR;
        w.data_ready = box.ready(beat, item, clear);
        box.update(beat, item, clear);
        switch (state) {
        case FIRST:
            ask(w, m, 1);
            if (!w.request.valid) state = CHECK;
            break;
        case CHECK:
            if (item) state = REST;
            break;
        case REST:
            ask(w, m, (left - 1) / m.word_commands + 1);
            if (!w.request.valid) state = STORE;
            break;
        case STORE:
            if (item && !--left) state = CLEAR;
            break;
        case CLEAR: state = RUN; break;
        case RUN: break;
        }
    }

private:
    static void ask(Wires& w, const Machine& m, Count words) {
        w.asked = {true, m.first_beat, words * m.word_commands * m.command_beats};
    }
};
