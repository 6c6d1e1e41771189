#ifndef NNET_PATCHLOOM_H_
#define NNET_PATCHLOOM_H_

#include "../patchloom/frame.hpp"
#include "ap_fixed.h"
#include <cassert>

namespace nnet {

// One layer that a Patchloom Program computes. Element i of the Program's input region is data[input_index(i)], or
// zero where that is -1; result i is element output_index(i) of its output region.
template <class data_T, class res_T, typename CONFIG_T>
void patchloom(data_T data[CONFIG_T::n_in], res_T res[CONFIG_T::n_out]) {
    using namespace ::patchloom;
    Word input[CONFIG_T::input_words], output[CONFIG_T::output_words];

Pack:
    for (int i = 0; i < CONFIG_T::input_words * ELEMENTS_PER_WORD; i++) {
        #pragma HLS PIPELINE
        const int source = CONFIG_T::input_index(i), low = ELEMENT_WIDTH * (i % ELEMENTS_PER_WORD);
        typename CONFIG_T::input_t value = 0;
        if (source >= 0)
            value = data[source]; // rounds and saturates
        const ap_int<CONFIG_T::input_t::width> raw = value.range();
        input[i / ELEMENTS_PER_WORD].range(low + ELEMENT_WIDTH - 1, low) = Element(raw);
    }

    unsigned saturations;
    const int error = frame(CONFIG_T::program(), input, output, 0, &saturations);
    assert(error == ERRORCODE_NONE);

Unpack:
    for (int i = 0; i < CONFIG_T::n_out; i++) {
        #pragma HLS PIPELINE
        const int source = CONFIG_T::output_index(i), low = ELEMENT_WIDTH * (source % ELEMENTS_PER_WORD);
        const Element raw = output[source / ELEMENTS_PER_WORD].range(low + ELEMENT_WIDTH - 1, low);
        typename CONFIG_T::output_t value;
        value.range() = raw.range(CONFIG_T::output_t::width - 1, 0);
        res[i] = value;
    }
}

} // namespace nnet

#endif
