#include "top.hpp"

// program, input and output share one AXI4 port: the machine uses one of them at a time.
int patchloom_top(
    const patchloom::Word *program, const patchloom::Word *input, patchloom::Word *output, int task,
    unsigned *saturations) {
#pragma HLS INTERFACE mode=m_axi port=program bundle=gmem offset=slave depth=PROGRAM_WORDS max_read_burst_length=64
#pragma HLS INTERFACE mode=m_axi port=input bundle=gmem offset=slave depth=INPUT_WORDS
#pragma HLS INTERFACE mode=m_axi port=output bundle=gmem offset=slave depth=OUTPUT_WORDS
#pragma HLS INTERFACE mode=s_axilite port=task
#pragma HLS INTERFACE mode=s_axilite port=saturations
#pragma HLS INTERFACE mode=s_axilite port=return
    return patchloom::frame(program, input, output, task, saturations);
}
