// What the memories of device.cpp and cycles.cpp have in common.
#pragma once

#include <cstdint>

using Count = int64_t;

constexpr Count AHEAD = 64;  // beats written that may come before their address
