// bf16 by the matrix tiles of AMX, for several query heads to a KV head. Include only in files compiled for it.
#pragma once

#include "avx512_softmax.h"
#include "kernel_x86.h"

namespace pacpu {
namespace {

class AmxBf16Kernel {
  public:
    static constexpr int64_t kMaxGroup = kMaxAmxGroup;

    static constexpr bool kStreams = false;

    explicit AmxBf16Kernel(const Span& span) : span_(span), query_(reinterpret_cast<uint16_t*>(span.scratch)) {
        const int64_t count = span.num_kv_heads * span.group * span.layout.head_dim;
        for (int64_t i = 0; i < count; i += 16) {
            const __m256bh rounded = _mm512_cvtneps_pbh(_mm512_loadu_ps(span.query + i));
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(query_ + i), (__m256i)rounded);
        }
        configure(static_cast<uint8_t>(span.group));
    }
    ~AmxBf16Kernel() { _tile_release(); }
    AmxBf16Kernel(const AmxBf16Kernel&) = delete;
    AmxBf16Kernel& operator=(const AmxBf16Kernel&) = delete;

    void attend(const Tile& tile, int64_t kv_head) const {
        const int64_t head = kv_head * span_.group, head_dim = span_.layout.head_dim;
        alignas(64) float scores[kMaxGroup][kTileTokens];
        alignas(64) __m256i weights[kMaxGroup];
        score(tile, query_ + head * head_dim, scores[0]);
        for (int64_t h = 0; h < span_.group; ++h) {
            const __m512 weighed = weigh_tile(span_, head + h, tile.num_tokens, _mm512_load_ps(scores[h]));
            weights[h] = (__m256i)_mm512_cvtneps_pbh(weighed);
        }
        accumulate(tile, weights, span_.accumulator + head * head_dim);
    }

  private:
    // Matrix tiles by number, for the instructions take constants: 0 scores, 1 query, 2 weights or the last 16
    // dimensions of a query, 3 keys, 4 values or the last keys, 5 to 7 output.
    static void configure(uint8_t group) {
        struct alignas(64) {
            uint8_t palette = 1, start_row = 0, reserved[14] = {};
            uint16_t row_bytes[16] = {64, 64, 32, 64, 64, 64, 64, 64};
            uint8_t rows[16] = {};
        } config;
        const uint8_t rows[] = {group, group, group, 16, 8, group, group, group};
        std::copy(std::begin(rows), std::end(rows), config.rows);
        _tile_loadconfig(&config);
    }

    // Between the loads of tiles, which would otherwise wait behind a burst of prefetches. Once: here it costs more to
    // ask twice than it gains.
    static void prefetch(const char* bytes, int64_t num_lines) {
        for (int64_t line = 0; line < num_lines; ++line) _mm_prefetch(bytes + line * 64, _MM_HINT_T1);
    }

    void score(const Tile& tile, const uint16_t* query, float* scores) const {
        const int64_t head_dim = span_.layout.head_dim;
        const auto query_stride = static_cast<size_t>(head_dim * 2);
        int64_t d = 0;
        _tile_zero(0);
        for (; d + 32 <= head_dim; d += 32) {
            _tile_loadd(1, query + d, query_stride);
            _tile_loadd(3, tile.key + d * 32, 64);
            _tile_dpbf16ps(0, 1, 3);
            prefetch(tile.next_key + d * 32, 16);
        }
        if (d < head_dim) {
            _tile_loadd(2, query + d, query_stride);
            _tile_loadd(4, tile.key + d * 32, 64);
            _tile_dpbf16ps(0, 2, 4);
            prefetch(tile.next_key + d * 32, 8);
        }
        _tile_stored(0, scores, kTileTokens * sizeof(float));
    }

    void accumulate(const Tile& tile, const __m256i* weights, float* accumulator) const {
        const int64_t head_dim = span_.layout.head_dim;
        const auto stride = static_cast<size_t>(head_dim * 4);  // of a pair of values, and of a head's output
        _tile_loadd(2, weights, sizeof *weights);
        int64_t d = 0;
        // Three at a time, so that one's multiplication overlaps with the loads and stores of the others.
        for (; d + 48 <= head_dim; d += 48) {
            _tile_loadd(5, accumulator + d, stride);
            _tile_loadd(6, accumulator + d + 16, stride);
            _tile_loadd(7, accumulator + d + 32, stride);
            _tile_loadd(4, tile.value + d * 4, stride);
            _tile_dpbf16ps(5, 2, 4);
            _tile_loadd(4, tile.value + d * 4 + 64, stride);
            _tile_dpbf16ps(6, 2, 4);
            _tile_loadd(4, tile.value + d * 4 + 128, stride);
            _tile_dpbf16ps(7, 2, 4);
            prefetch(tile.next_value + d * 32, 24);
            _tile_stored(5, accumulator + d, stride);
            _tile_stored(6, accumulator + d + 16, stride);
            _tile_stored(7, accumulator + d + 32, stride);
        }
        for (; d < head_dim; d += 16) {
            _tile_loadd(5, accumulator + d, stride);
            _tile_loadd(4, tile.value + d * 4, stride);
            _tile_dpbf16ps(5, 2, 4);
            prefetch(tile.next_value + d * 32, 8);
            _tile_stored(5, accumulator + d, stride);
        }
    }

    const Span& span_;
    uint16_t* query_;  // bf16 [heads, head_dim]
};

}  // namespace
}  // namespace pacpu
