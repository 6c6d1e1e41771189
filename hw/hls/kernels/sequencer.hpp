// Runs the commands of one task.
#pragma once

#include "matmul.hpp"
#include "router.hpp"

namespace patchloom {

// Returns an ERRORCODE. Commands of a task lie COMMAND_DEPTH apart at the head of the program.
inline int run(Machine &m, const Word *program, const Word *input, Word *output, int task) {
    m.saturations = 0;
commands:
    for (int i = 0; i < COMMAND_DEPTH; ++i) {
#pragma HLS LOOP_TRIPCOUNT min=2 max=COMMAND_DEPTH
        const int64_t at = int64_t(task) * COMMAND_DEPTH + i;
        const Command c = read_command(program, at * COMMAND_WORDS);
        if ((c.kind == KIND_BEGIN) != (i == 0)) return ERRORCODE_BAD_COMMAND;
        switch (int(c.kind)) {
            case KIND_BEGIN:
                if (c.epsilon != FINGERPRINT) return ERRORCODE_WRONG_CONFIG;
                break;
            case KIND_LOAD:
                load(m, c, c.dma_space == SPACE_INPUT ? input : program);
                break;
            case KIND_TABLE:
                load_table(m, c, program);
                break;
            case KIND_STORE:
                store(m, c, output);
                break;
            case KIND_MATMUL:
                matmul(m, c, program);
                break;
            case KIND_ROUTE:
                route(m, c);
                break;
            case KIND_END:
                return ERRORCODE_NONE;
            default:
                return ERRORCODE_BAD_COMMAND;
        }
    }
    return ERRORCODE_BAD_COMMAND;  // the commands do not end
}

}  // namespace patchloom
