// ROUTE: the top-k of each row of logits into one token queue per expert, so that experts run one by one.
#pragma once

#include "machine.hpp"
#include "softmax.hpp"

namespace patchloom {

// The best experts so far, best first. Ties go to the lower number, which comes first.
struct Ranking {
    Element logit[MAX_TOP_K];
    ap_uint<8> expert[MAX_TOP_K];
};

inline void rank(Ranking &best, int filled, const Element &logit, int expert) {
#pragma HLS INLINE
    Element carried = logit;
    ap_uint<8> number = expert;
    bool placed = false;
    for (int k = 0; k < MAX_TOP_K; ++k) {
#pragma HLS UNROLL
        if (placed || k >= filled || carried > best.logit[k]) {
            const Element logit_before = best.logit[k];
            const ap_uint<8> expert_before = best.expert[k];
            best.logit[k] = carried;
            best.expert[k] = number;
            carried = logit_before;
            number = expert_before;
            placed = true;
        }
    }
}

inline void push(Machine &m, int expert, const Entry &entry) {
#pragma HLS INLINE
    m.queue[expert][m.queued[expert]] = entry;
    ++m.queued[expert];
}

inline void route_row(Machine &m, const Command &c, int row) {
    const int address = int(c.a_address) + row * int(c.a_stride);
    Ranking best = {};
scan:
    for (int e = 0; e < MAX_EXPERTS; ++e) {
#pragma HLS PIPELINE II=1
        if (e >= c.columns) break;
        rank(best, e, element(m, address, e), e);
    }
    bool chosen[MAX_EXPERTS] = {};
    int first = MAX_EXPERTS;
select:
    for (int k = 0; k < MAX_TOP_K; ++k) {
#pragma HLS PIPELINE II=1
        if (k >= c.top_k) break;
        const int expert = best.expert[k];
        chosen[expert] = true;
        first = expert < first ? expert : first;
    }
    ap_uint<ELEMENT_WIDTH> exponential[MAX_EXPERTS] = {};
    RowSum sum = 0;
score:
    for (int e = 0; e < MAX_EXPERTS; ++e) {
#pragma HLS PIPELINE II=1
        if (e >= c.columns) break;
        exponential[e] = exp2_negative(difference(best.logit[0], element(m, address, e), c.exp_shift), true);
        if (chosen[e] || c.score_all) sum += exponential[e];
    }
    const Scaled inverse = reciprocal(sum);
send:
    for (int e = 0; e < MAX_EXPERTS; ++e) {
#pragma HLS PIPELINE II=1
        if (e >= c.columns) break;
        const auto score = shift_round(product<ELEMENT_WIDTH + FACTOR_WIDTH + 1>(exponential[e], inverse.mantissa), inverse.exponent);
        if (chosen[e]) push(m, e, {row, score, e == first});
    }
}

inline void route(Machine &m, const Command &c) {
clear:
    for (int e = 0; e < MAX_EXPERTS; ++e) {
#pragma HLS UNROLL
        m.queued[e] = 0;
    }
rows:
    for (int row = 0; row < MAX_ROWS; ++row) {
#pragma HLS LOOP_TRIPCOUNT min=1 max=MAX_ROWS
        if (row >= c.rows) break;
        route_row(m, c, row);
    }
}

}  // namespace patchloom
