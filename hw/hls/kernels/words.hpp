// The vendor's types, and the compilers' complaints that HLS sources cannot avoid.
#pragma once

#ifndef __SYNTHESIS__
#pragma GCC diagnostic ignored "-Wunused-label"  // labels are the names of loops
#endif

#if defined(__GNUC__) && !defined(__clang__)  // the headers' default constructors read what they then mask
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <ap_int.h>
#pragma GCC diagnostic pop
#else
#include <ap_int.h>
#endif
