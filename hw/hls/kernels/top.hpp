// The function that is synthesised. It returns an ERRORCODE and counts the values that did not fit their format.
#pragma once

#include "frame.hpp"
#include "project.hpp"

int patchloom_top(
    const patchloom::Word *program, const patchloom::Word *input, patchloom::Word *output, int task,
    unsigned *saturations);
