// No attention, but what bounds it from above: reads the same memory in the same order and does nothing with it.
#pragma once

#include "kernel.h"

namespace pacpu {

// Name of the target that no list of targets shows.
constexpr char kReadRuns[] = "read_runs";

// A checksum (of the sum of 64-bit words, modulo 4096, a run) takes the place of the first query head's output.
SpanKernel best_read_kernel();

}  // namespace pacpu
