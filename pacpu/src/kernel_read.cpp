#include "kernel_read.h"

#include "span_walk.h"

namespace pacpu {
namespace {

constexpr int64_t kLineWords = 64 / sizeof(uint64_t), kLinesAtOnce = 4;
// The hardware follows a run by itself, but not to where the next one starts.
constexpr int64_t kNextRunBytes = 2048;

[[gnu::always_inline]] inline uint64_t sum_lines(const char* bytes, int64_t num_bytes) {
    uint64_t lanes[kLineWords * kLinesAtOnce] = {}, total = 0;
    const auto* words = reinterpret_cast<const uint64_t*>(bytes);
    const int64_t num_words = num_bytes / static_cast<int64_t>(sizeof(uint64_t));
    int64_t i = 0;
    for (; i + kLineWords * kLinesAtOnce <= num_words; i += kLineWords * kLinesAtOnce)
        for (int64_t lane = 0; lane < kLineWords * kLinesAtOnce; ++lane) lanes[lane] += words[i + lane];
    for (; i < num_words; ++i) total += words[i];
    for (const uint64_t lane : lanes) total += lane;
    return total;
}

[[gnu::always_inline]] inline void read_span(const Span& span) {
    SpanWalk walk(span);
    while (!walk.done()) {
        // Tiles up to where memory is no longer contiguous.
        const char* start = walk.key();
        const int64_t first_head = walk.head();
        const char* end = start;
        while (!walk.done() && walk.key() == end) {
            end += span.layout.tile_bytes();
            walk.advance();
        }
        if (!walk.done())
            for (int64_t byte = 0; byte < kNextRunBytes; byte += 64) __builtin_prefetch(walk.key() + byte, 0, 2);
        const uint64_t checksum = sum_lines(start, end - start);
        span.accumulator[first_head * span.group * span.layout.head_dim] += static_cast<float>(checksum % 4096);
        span.sum[first_head * span.group * kTileTokens] = 1;
    }
}

void read_portable(const Span& span) { read_span(span); }
#if defined(__x86_64__)
[[gnu::target("avx2")]] void read_avx2(const Span& span) { read_span(span); }
#endif

}  // namespace

SpanKernel best_read_kernel() {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) return read_avx2;
#endif
    return read_portable;
}

}  // namespace pacpu
