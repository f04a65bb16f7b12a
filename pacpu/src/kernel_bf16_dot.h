// bf16 by the dot products of AVX512_BF16. Include only in files compiled for it.
#pragma once

#include "avx512_softmax.h"

namespace pacpu {
namespace {

// kHeadDim is the head_dim where it is known when compiling: loops then need fewer addresses; 0 stands for any.
template <int64_t kHeadDim>
class Bf16DotKernel {
  public:
    static constexpr bool kStreams = true;

    explicit Bf16DotKernel(const Span& span) : span_(span), query_(reinterpret_cast<uint32_t*>(span.scratch)) {
        const int64_t count = span.num_kv_heads * span.group * span.layout.head_dim;
        for (int64_t i = 0; i < count; i += 16) {
            const __m256bh rounded = _mm512_cvtneps_pbh(_mm512_loadu_ps(span.query + i));
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(query_ + i / 2), (__m256i)rounded);
        }
    }

    void attend(const Tile& tile, int64_t kv_head) const {
        int64_t head = kv_head * span_.group;
        const int64_t end = head + span_.group;
        for (; head + 8 <= end; head += 8) attend_heads<8>(tile, head);
        for (; head + 4 <= end; head += 4) attend_heads<4>(tile, head);
        for (; head + 2 <= end; head += 2) attend_heads<2>(tile, head);
        for (; head < end; ++head) attend_heads<1>(tile, head);
    }

  private:
    static constexpr int64_t kPairs = kTileTokens / 2;
    int64_t head_dim() const { return kHeadDim > 0 ? kHeadDim : span_.layout.head_dim; }
    static __m512bh load(const char* line) { return (__m512bh)_mm512_loadu_si512(line); }
    static __m512bh broadcast(uint32_t pair) { return (__m512bh)_mm512_set1_epi32(static_cast<int>(pair)); }

    template <int kHeads>
    void attend_heads(const Tile& tile, int64_t head) const {
        alignas(64) uint32_t weights[kHeads][kPairs];
        score<kHeads>(tile, head, weights);
        // As many vectors as keep 16 sums in registers.
        constexpr int kVectors = kHeads >= 4 ? 4 : 8 / kHeads;
        constexpr int kSharing = kHeads >= 4 ? 4 : kHeads;
        for (int first = 0; first < kHeads; first += kSharing) {
            int64_t d = 0;
            for (; d + kVectors * 16 <= head_dim(); d += kVectors * 16)
                accumulate<kSharing, kVectors>(tile, head + first, d, weights + first);
            for (; d < head_dim(); d += 16) accumulate<kSharing, 1>(tile, head + first, d, weights + first);
        }
    }

    template <int kHeads>
    void score(const Tile& tile, int64_t head, uint32_t (*weights)[kPairs]) const {
        // Eight sums at a time hide the latency of a dot product.
        constexpr int kChains = 8 / kHeads;
        const int64_t pairs = head_dim() / 2;
        const uint32_t* query = query_ + head * pairs;
        __m512 sums[kHeads][kChains];
        for (auto& chains : sums)
            for (__m512& sum : chains) sum = _mm512_setzero_ps();
        for (int64_t pair = 0; pair < pairs; pair += kChains) {
#pragma GCC unroll 8
            for (int chain = 0; chain < kChains; ++chain) {
                const __m512bh key = load(tile.key + (pair + chain) * 64);
                prefetch_line(tile.next_key + (pair + chain) * 64);
#pragma GCC unroll 8
                for (int h = 0; h < kHeads; ++h)
                    sums[h][chain] = _mm512_dpbf16_ps(sums[h][chain], key, broadcast(query[h * pairs + pair + chain]));
            }
        }
#pragma GCC unroll 8
        for (int h = 0; h < kHeads; ++h) {
            __m512 scores = sums[h][0];
#pragma GCC unroll 8
            for (int chain = 1; chain < kChains; ++chain) scores = _mm512_add_ps(scores, sums[h][chain]);
            const __m512 weighed = weigh_tile(span_, head + h, tile.num_tokens, scores);
            _mm256_store_si256(reinterpret_cast<__m256i*>(weights[h]), (__m256i)_mm512_cvtneps_pbh(weighed));
        }
    }

    template <int kHeads, int kVectors>
    void accumulate(const Tile& tile, int64_t head, int64_t d, const uint32_t (*weights)[kPairs]) const {
        float* accumulator = span_.accumulator + head * head_dim() + d;
        __m512 sums[kHeads][kVectors];
#pragma GCC unroll 8
        for (int h = 0; h < kHeads; ++h)
#pragma GCC unroll 8
            for (int v = 0; v < kVectors; ++v) sums[h][v] = _mm512_loadu_ps(accumulator + h * head_dim() + v * 16);
        for (int64_t pair = 0; pair < kPairs; ++pair) {
            const int64_t line = (pair * head_dim() + d) * 4;
#pragma GCC unroll 8
            for (int v = 0; v < kVectors; ++v) {
                const __m512bh value = load(tile.value + line + v * 64);
                prefetch_line(tile.next_value + line + v * 64);
#pragma GCC unroll 8
                for (int h = 0; h < kHeads; ++h)
                    sums[h][v] = _mm512_dpbf16_ps(sums[h][v], value, broadcast(weights[h][pair]));
            }
        }
#pragma GCC unroll 8
        for (int h = 0; h < kHeads; ++h)
#pragma GCC unroll 8
            for (int v = 0; v < kVectors; ++v) _mm512_storeu_ps(accumulator + h * head_dim() + v * 16, sums[h][v]);
    }

    const Span& span_;
    uint32_t* query_;  // pairs of bf16 [heads, head_dim / 2]
};

}  // namespace
}  // namespace pacpu
