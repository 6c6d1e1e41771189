#ifndef NNET_PATCHLOOM_H_
#define NNET_PATCHLOOM_H_

#include "ap_fixed.h"
#include "ap_int.h"

namespace nnet {

// One layer that a Patchloom Program computes. Region element i of the Program's input is data[input_index[i]], or
// zero where that is -1; result i is region element output_index[i] of its output.
template <class data_T, class res_T, typename CONFIG_T>
void patchloom(data_T data[CONFIG_T::n_in], res_T res[CONFIG_T::n_out]) {
    short input[CONFIG_T::input_elements];
    short output[CONFIG_T::output_elements];

    for (int i = 0; i < CONFIG_T::input_elements; i++) {
        int source = CONFIG_T::input_index(i);
        typename CONFIG_T::input_t value = 0;
        if (source >= 0)
            value = data[source]; // rounds and saturates
        ap_int<CONFIG_T::input_t::width> raw = value.range();
        input[i] = raw.to_int();
    }

    CONFIG_T::run(input, output);

    for (int i = 0; i < CONFIG_T::n_out; i++) {
        typename CONFIG_T::output_t value;
        value.range() = ap_int<CONFIG_T::output_t::width>(output[CONFIG_T::output_index(i)]);
        res[i] = value;
    }
}

} // namespace nnet

#endif
