// How fast the threads of a pool read memory: the limit that attention over a KV cache is measured against.
#pragma once

#include <cstdint>

#include "worker_pool.h"

namespace pacpu {

constexpr int64_t kReadChunkBytes = 1 << 20;

struct ReadSample {
    int64_t elapsed_ns;
    uint64_t checksum;  // of the 64-bit words read, modulo 2^64
};

// Sums `chunks_to_read` chunks of kReadChunkBytes from `first_chunk` on, going round the buffer's `num_chunks`. Threads
// take chunks as they take attention's work: those of a virtual machine are not equally fast.
ReadSample read_stream(WorkerPool& pool, const void* buffer, int64_t num_chunks, int64_t first_chunk,
                       int64_t chunks_to_read);

}  // namespace pacpu
