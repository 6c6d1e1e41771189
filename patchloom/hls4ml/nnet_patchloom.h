#ifndef NNET_PATCHLOOM_H_
#define NNET_PATCHLOOM_H_

#include "../patchloom/frame.hpp"
#include "ap_fixed.h"
#include "hls_stream.h"
#include <cassert>

namespace nnet {

// One layer that a Patchloom Program computes. Element i of the Program's input region is data[input_index(i)], or
// zero where that is -1; result i is element output_index(i) of its output region.
template <class data_T, class res_T, typename CONFIG_T>
void patchloom(data_T data[CONFIG_T::n_in], res_T res[CONFIG_T::n_out]) {
    using namespace ::patchloom;
    Word input[CONFIG_T::input_words], output[CONFIG_T::output_words];
    const int inputs = ELEMENTS_PER_WORD * ELEMENT_WIDTH / CONFIG_T::input_bits; // of a word

Pack:
    for (int i = 0; i < CONFIG_T::input_words * inputs; i++) {
        #pragma HLS PIPELINE
        const int source = CONFIG_T::input_index(i), low = CONFIG_T::input_bits * (i % inputs);
        typename CONFIG_T::input_t value = 0;
        if (source >= 0)
            value = data[source]; // rounds and saturates
        const ap_int<CONFIG_T::input_t::width> raw = value.range();
        input[i / inputs].range(low + CONFIG_T::input_bits - 1, low) = ap_int<CONFIG_T::input_bits>(raw);
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

// The same between streams of nnet::array.
template <class data_T, class res_T, typename CONFIG_T>
void patchloom(hls::stream<data_T> &data_stream, hls::stream<res_T> &res_stream) {
    typename data_T::value_type data[CONFIG_T::n_in];
    typename res_T::value_type res[CONFIG_T::n_out];

Read:
    for (int i = 0; i < CONFIG_T::n_in; i += data_T::size) {
        #pragma HLS PIPELINE
        const data_T pack = data_stream.read();
        for (int j = 0; j < data_T::size; j++)
            data[i + j] = pack[j];
    }

    patchloom<typename data_T::value_type, typename res_T::value_type, CONFIG_T>(data, res);

Write:
    for (int i = 0; i < CONFIG_T::n_out; i += res_T::size) {
        #pragma HLS PIPELINE
        res_T pack;
        for (int j = 0; j < res_T::size; j++)
            pack[j] = res[i + j];
        res_stream.write(pack);
    }
}

} // namespace nnet

#endif
