// bf16 by the matrix tiles of AMX, for several query heads to a KV head, two tiles of tokens at a time: the sums of the
// output, as many bytes as half a tile, are loaded and stored half as often, and the chains of one tile's dependent
// multiplications overlap with the other's. Include only in files compiled for it.
#pragma once

#include "avx512_softmax.h"
#include "kernel_x86.h"

namespace pacpu {
namespace {

class AmxBf16Kernel {
  public:
    static constexpr int64_t kMaxGroup = kMaxAmxGroup;

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

    template <int kTiles>
    void attend(const Tile* tiles, int64_t kv_head) const {
        const int64_t head = kv_head * span_.group, head_dim = span_.layout.head_dim;
        alignas(64) float scores[kTiles][kMaxGroup][kTileTokens];
        alignas(64) __m256i weights[kTiles][kMaxGroup];
        score<kTiles>(tiles, query_ + head * head_dim, scores[0][0]);
        for (int64_t h = 0; h < span_.group; ++h) {
            // The maximum must be final before anything is weighed by it.
            for (int i = 0; i < kTiles; ++i)
                follow_maximum(span_, head + h, tiles[i].num_tokens, _mm512_load_ps(scores[i][h]));
            for (int i = 0; i < kTiles; ++i) {
                const __m512 tile_scores = _mm512_load_ps(scores[i][h]);
                const __m512 weighed = weigh_scores(span_, head + h, tiles[i].num_tokens, tile_scores);
                weights[i][h] = (__m256i)_mm512_cvtneps_pbh(weighed);
            }
        }
        accumulate<kTiles>(tiles, weights[0], span_.accumulator + head * head_dim);
    }

  private:
    static constexpr size_t kScoreStride = kTileTokens * sizeof(float), kWeightStride = sizeof(__m256i);
    static constexpr int64_t kScoreFloats = kMaxGroup * kTileTokens;

    // Matrix tiles by number, for the instructions take constants: 0 and 1 scores or output, 2 query or output,
    // 3 keys, 4 values or the last 16 dimensions of keys, 5 and 6 weights (5 also the last dimensions of a query).
    static void configure(uint8_t group) {
        struct alignas(64) {
            uint8_t palette = 1, start_row = 0, reserved[14] = {};
            uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 32, 32};
            uint8_t rows[16] = {};
        } config;
        const uint8_t rows[] = {group, group, group, 16, 8, group, group};
        std::copy(std::begin(rows), std::end(rows), config.rows);
        _tile_loadconfig(&config);
    }

    // Between the loads of matrix tiles, which would otherwise wait behind a burst of prefetches. Once: here it costs
    // more to ask twice than it gains.
    template <int kTiles>
    static void prefetch(const Tile* tiles, const char* Tile::* side, int64_t offset, int64_t num_lines) {
        for (int i = 0; i < kTiles; ++i)
            for (int64_t line = 0; line < num_lines; ++line)
                _mm_prefetch(tiles[i].*side + offset + line * 64, _MM_HINT_T1);
    }

    template <int kTiles>
    void score(const Tile* tiles, const uint16_t* query, float* scores) const {
        const int64_t head_dim = span_.layout.head_dim;
        const auto query_stride = static_cast<size_t>(head_dim * 2);
        int64_t d = 0;
        _tile_zero(0);
        if constexpr (kTiles == 2) _tile_zero(1);
        for (; d + 32 <= head_dim; d += 32) {
            _tile_loadd(2, query + d, query_stride);
            _tile_loadd(3, tiles[0].key + d * 32, 64);
            _tile_dpbf16ps(0, 2, 3);
            if constexpr (kTiles == 2) {
                _tile_loadd(3, tiles[1].key + d * 32, 64);
                _tile_dpbf16ps(1, 2, 3);
            }
            prefetch<kTiles>(tiles, &Tile::next_key, d * 32, 16);
        }
        if (d < head_dim) {
            _tile_loadd(5, query + d, query_stride);
            _tile_loadd(4, tiles[0].key + d * 32, 64);
            _tile_dpbf16ps(0, 5, 4);
            if constexpr (kTiles == 2) {
                _tile_loadd(4, tiles[1].key + d * 32, 64);
                _tile_dpbf16ps(1, 5, 4);
            }
            prefetch<kTiles>(tiles, &Tile::next_key, d * 32, 8);
        }
        _tile_stored(0, scores, kScoreStride);
        if constexpr (kTiles == 2) _tile_stored(1, scores + kScoreFloats, kScoreStride);
    }

    template <int kTiles>
    void accumulate(const Tile* tiles, const __m256i* weights, float* accumulator) const {
        const int64_t head_dim = span_.layout.head_dim;
        const auto stride = static_cast<size_t>(head_dim * 4);  // of a pair of values, and of a head's output
        _tile_loadd(5, weights, kWeightStride);
        if constexpr (kTiles == 2) _tile_loadd(6, weights + kMaxGroup, kWeightStride);
        int64_t d = 0;
        // Three at a time, so that one's multiplication overlaps with the loads and stores of the others.
        for (; d + 48 <= head_dim; d += 48) {
            _tile_loadd(0, accumulator + d, stride);
            _tile_loadd(1, accumulator + d + 16, stride);
            _tile_loadd(2, accumulator + d + 32, stride);
            const char* values = tiles[0].value + d * 4;
            _tile_loadd(4, values, stride);
            _tile_dpbf16ps(0, 5, 4);
            _tile_loadd(4, values + 64, stride);
            _tile_dpbf16ps(1, 5, 4);
            _tile_loadd(4, values + 128, stride);
            _tile_dpbf16ps(2, 5, 4);
            if constexpr (kTiles == 2) {
                values = tiles[1].value + d * 4;
                _tile_loadd(4, values, stride);
                _tile_dpbf16ps(0, 6, 4);
                _tile_loadd(4, values + 64, stride);
                _tile_dpbf16ps(1, 6, 4);
                _tile_loadd(4, values + 128, stride);
                _tile_dpbf16ps(2, 6, 4);
            }
            prefetch<kTiles>(tiles, &Tile::next_value, d * 32, 24);
            _tile_stored(0, accumulator + d, stride);
            _tile_stored(1, accumulator + d + 16, stride);
            _tile_stored(2, accumulator + d + 32, stride);
        }
        for (; d < head_dim; d += 16) {
            _tile_loadd(0, accumulator + d, stride);
            _tile_loadd(4, tiles[0].value + d * 4, stride);
            _tile_dpbf16ps(0, 5, 4);
            if constexpr (kTiles == 2) {
                _tile_loadd(4, tiles[1].value + d * 4, stride);
                _tile_dpbf16ps(0, 6, 4);
            }
            prefetch<kTiles>(tiles, &Tile::next_value, d * 32, 8);
            _tile_stored(0, accumulator + d, stride);
        }
    }

    const Span& span_;
    uint16_t* query_;  // bf16 [heads, head_dim]
};

}  // namespace
}  // namespace pacpu
