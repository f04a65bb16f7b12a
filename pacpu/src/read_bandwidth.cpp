#include "read_bandwidth.h"

#include <chrono>
#include <vector>

namespace pacpu {
namespace {

constexpr int64_t kWordsPerChunk = kReadChunkBytes / static_cast<int64_t>(sizeof(uint64_t));
// Four lines at once: one accumulator would wait for its own additions.
constexpr int kLanes = 32;

using SumChunk = uint64_t (*)(const uint64_t* words);

[[gnu::always_inline]] inline uint64_t sum_words(const uint64_t* words) {
    uint64_t lanes[kLanes] = {};
    for (int64_t i = 0; i < kWordsPerChunk; i += kLanes)
        for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += words[i + lane];
    uint64_t total = 0;
    for (uint64_t lane : lanes) total += lane;
    return total;
}

uint64_t sum_portable(const uint64_t* words) { return sum_words(words); }

#if defined(__x86_64__)
[[gnu::target("avx2")]] uint64_t sum_avx2(const uint64_t* words) { return sum_words(words); }
#endif

// Wider vectors read no faster: a thread waits for memory well before it runs out of loads.
SumChunk best_sum() {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) return sum_avx2;
#endif
    return sum_portable;
}

struct alignas(64) WorkerSum {
    uint64_t value = 0;
};

struct Stream {
    SumChunk sum_chunk;
    const uint64_t* words;
    int64_t num_chunks;
    int64_t first_chunk;
    std::vector<WorkerSum> sums;
};

void read_chunk(void* context, int64_t item, int worker) noexcept {
    Stream& stream = *static_cast<Stream*>(context);
    const int64_t chunk = (stream.first_chunk + item) % stream.num_chunks;
    stream.sums[static_cast<size_t>(worker)].value += stream.sum_chunk(stream.words + chunk * kWordsPerChunk);
}

}  // namespace

ReadSample read_stream(WorkerPool& pool, const void* buffer, int64_t num_chunks, int64_t first_chunk,
                       int64_t chunks_to_read) {
    Stream stream{best_sum(), static_cast<const uint64_t*>(buffer), num_chunks, first_chunk,
                  std::vector<WorkerSum>(static_cast<size_t>(pool.num_threads()))};
    const auto started = std::chrono::steady_clock::now().time_since_epoch();
    const int64_t finished_ns = pool.wait(pool.submit(read_chunk, &stream, chunks_to_read));
    ReadSample sample{finished_ns - std::chrono::duration_cast<std::chrono::nanoseconds>(started).count(), 0};
    for (const WorkerSum& sum : stream.sums) sample.checksum += sum.value;
    return sample;
}

}  // namespace pacpu
