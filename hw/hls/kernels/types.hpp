// The widths of everything that passes from one unit to another.
#pragma once

#include "facts.hpp"

namespace patchloom {

typedef ap_uint<BUS_WIDTH> Word;
typedef ap_int<ELEMENT_WIDTH> Element;
typedef ap_int<ACCUMULATOR_WIDTH> Sum;
typedef ap_int<EPILOGUE_WIDTH> EpilogueWord;
typedef ap_uint<TABLE_ENTRY_BITS> TableEntry;  // base, then slope
typedef ap_uint<FACTOR_WIDTH> Factor;         // ROW_ONE is 1.0
typedef ap_int<TOTAL_WIDTH> Total;            // of a row's elements
typedef ap_uint<SQUARES_WIDTH> Squares;       // of their squares
typedef ap_int<MEAN_WIDTH> Mean;              // MEAN_GUARD bits finer than an element
typedef ap_uint<SUM_WIDTH> RowSum;            // of a row's exponentials
typedef ap_uint<DIFFERENCE_WIDTH> Difference;  // of two scores, SCORE_FRACTION fractional bits
typedef ap_int<MEAN_WIDTH + 1 + FACTOR_WIDTH + 2> Prepared;  // a streamed element before it is limited

}  // namespace patchloom
