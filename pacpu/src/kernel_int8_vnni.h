// int8 by the byte dot products of AVX512_VNNI. The query becomes 16-bit integers, taken apart into two bytes: 8 bits
// would cost as much accuracy as the cache does. For the weights 8 bits, relative to the largest of eight neighbours,
// cost a quarter of that. Include only in files compiled for it.
#pragma once

#include <cmath>

#include "avx512_softmax.h"

namespace pacpu {
namespace {

// kHeadDim as in Bf16DotKernel.
template <int64_t kHeadDim>
class Int8VnniKernel {
  public:
    static constexpr bool kStreams = false;

    explicit Int8VnniKernel(const Span& span)
        : span_(span),
          queries_(reinterpret_cast<Query*>(span.scratch)),
          bytes_(reinterpret_cast<uint32_t*>(queries_ + span.num_kv_heads * span.group)) {
        for (int64_t head = 0; head < span.num_kv_heads * span.group; ++head) prepare(head);
    }

    void attend(const Tile& tile, int64_t kv_head) const {
        int64_t head = kv_head * span_.group;
        const int64_t end = head + span_.group;
        for (; head + 4 <= end; head += 4) attend_heads<4>(tile, head);
        for (; head + 2 <= end; head += 2) attend_heads<2>(tile, head);
        for (; head < end; ++head) attend_heads<1>(tile, head);
    }

  private:
    static constexpr int64_t kWords = kTileTokens / 4;
    int64_t head_dim() const { return kHeadDim > 0 ? kHeadDim : span_.layout.head_dim; }
    int64_t query_words() const { return head_dim() / 4; }  // of four bytes, in a head's query
    struct Query {
        float scale;
        int32_t high_offset, low_offset;  // what the keys' shift to unsigned bytes adds to the sums
        int32_t unused;
    };

    // query = scale * (256 * high + low). The instruction multiplies unsigned by signed bytes, so keys are shifted by
    // 128 on their way in, and the sums start at minus what that adds.
    void prepare(int64_t head) const {
        constexpr float kMost = 127 * 256;
        const float* query = span_.query + head * head_dim();
        auto* high = reinterpret_cast<int8_t*>(bytes_ + 2 * head * query_words());
        int8_t* low = high + query_words() * 4;
        __m512 largest = _mm512_setzero_ps();
        for (int64_t d = 0; d < head_dim(); d += 16)
            largest = _mm512_max_ps(_mm512_abs_ps(_mm512_loadu_ps(query + d)), largest);
        const float most = _mm512_reduce_max_ps(largest);
        const __m512 inverse = _mm512_set1_ps(most > 0 ? kMost / most : 0);
        __m512i high_sum = _mm512_setzero_si512(), low_sum = high_sum;
        bool is_finite = std::isfinite(most);
        for (int64_t d = 0; d < head_dim(); d += 16) {
            const __m512 x = _mm512_loadu_ps(query + d);
            is_finite = is_finite && _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q) == 0;
            const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(x, inverse));
            const __m512i high_part = _mm512_srai_epi32(_mm512_add_epi32(whole, _mm512_set1_epi32(128)), 8);
            const __m512i low_part = _mm512_sub_epi32(whole, _mm512_slli_epi32(high_part, 8));
            _mm_storeu_si128(reinterpret_cast<__m128i*>(high + d), _mm512_cvtepi32_epi8(high_part));
            _mm_storeu_si128(reinterpret_cast<__m128i*>(low + d), _mm512_cvtepi32_epi8(low_part));
            high_sum = _mm512_add_epi32(high_sum, high_part);
            low_sum = _mm512_add_epi32(low_sum, low_part);
        }
        queries_[head] = {is_finite ? most / kMost : NAN, -128 * _mm512_reduce_add_epi32(high_sum),
                          -128 * _mm512_reduce_add_epi32(low_sum), 0};
    }

    template <int kHeads>
    void attend_heads(const Tile& tile, int64_t head) const {
        alignas(64) uint32_t weights[kHeads][kWords];
        float factors[kHeads][2];
        score<kHeads>(tile, head, weights, factors);
        constexpr int kVectors = 8 / kHeads;
        int64_t d = 0;
        for (; d + kVectors * 16 <= head_dim(); d += kVectors * 16)
            accumulate<kHeads, kVectors>(tile, head, d, weights, factors);
        for (; d < head_dim(); d += 16) accumulate<kHeads, 1>(tile, head, d, weights, factors);
    }

    template <int kHeads>
    void score(const Tile& tile, int64_t head, uint32_t (*weights)[kWords], float (*factors)[2]) const {
        constexpr int kChains = 4 / kHeads;
        const uint32_t* query = bytes_ + 2 * head * query_words();
        __m512i high_sums[kHeads][kChains], low_sums[kHeads][kChains];
#pragma GCC unroll 4
        for (int h = 0; h < kHeads; ++h)
#pragma GCC unroll 4
            for (int chain = 0; chain < kChains; ++chain) {
                high_sums[h][chain] = _mm512_set1_epi32(chain == 0 ? queries_[head + h].high_offset : 0);
                low_sums[h][chain] = _mm512_set1_epi32(chain == 0 ? queries_[head + h].low_offset : 0);
            }
        for (int64_t word = 0; word < query_words(); word += kChains) {
#pragma GCC unroll 4
            for (int chain = 0; chain < kChains; ++chain) {
                const __m512i signed_key = _mm512_loadu_si512(tile.key + (word + chain) * 64);
                const __m512i key = _mm512_xor_si512(signed_key, _mm512_set1_epi8(static_cast<char>(0x80)));
                prefetch_line(tile.next_key + (word + chain) * 64);
#pragma GCC unroll 4
                for (int h = 0; h < kHeads; ++h) {
                    const uint32_t* bytes = query + 2 * h * query_words() + word + chain;
                    high_sums[h][chain] = _mm512_dpbusd_epi32(high_sums[h][chain], key, broadcast(bytes[0]));
                    low_sums[h][chain] = _mm512_dpbusd_epi32(low_sums[h][chain], key, broadcast(bytes[query_words()]));
                }
            }
        }
        const __m512 key_scales = _mm512_loadu_ps(tile.key_scales);
        const __m512 value_scales = _mm512_loadu_ps(tile.value_scales);
#pragma GCC unroll 4
        for (int h = 0; h < kHeads; ++h) {
            __m512i whole = _mm512_add_epi32(_mm512_slli_epi32(high_sums[h][0], 8), low_sums[h][0]);
#pragma GCC unroll 4
            for (int chain = 1; chain < kChains; ++chain)
                whole = _mm512_add_epi32(
                    whole, _mm512_add_epi32(_mm512_slli_epi32(high_sums[h][chain], 8), low_sums[h][chain]));
            const __m512 factor = _mm512_mul_ps(_mm512_set1_ps(queries_[head + h].scale), key_scales);
            const __m512 scores = _mm512_mul_ps(_mm512_cvtepi32_ps(whole), factor);
            const __m512 scaled = _mm512_mul_ps(weigh_tile(span_, head + h, tile.num_tokens, scores), value_scales);
            round_weights(scaled, weights[h], factors[h]);
        }
    }

    // Each half of the weights = its factor * rounded; both factors are NaN when a weight is.
    static void round_weights(__m512 weights, uint32_t* rounded, float* factors) {
        constexpr float kMost = 255;
        __m512 most = _mm512_max_ps(weights, _mm512_shuffle_f32x4(weights, weights, _MM_SHUFFLE(2, 3, 0, 1)));
        most = _mm512_max_ps(most, _mm512_permute_ps(most, _MM_SHUFFLE(1, 0, 3, 2)));
        most = _mm512_max_ps(most, _mm512_permute_ps(most, _MM_SHUFFLE(2, 3, 0, 1)));
        const __mmask16 any = _mm512_cmp_ps_mask(most, _mm512_setzero_ps(), _CMP_GT_OQ);
        const __m512 inverse = _mm512_maskz_div_ps(any, _mm512_set1_ps(kMost), most);
        const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(weights, inverse));
        _mm_store_si128(reinterpret_cast<__m128i*>(rounded), _mm512_cvtepi32_epi8(whole));
        const bool is_number = _mm512_cmp_ps_mask(weights, weights, _CMP_UNORD_Q) == 0;
        factors[0] = is_number ? _mm512_cvtss_f32(most) / kMost : NAN;
        factors[1] = is_number ? _mm_cvtss_f32(_mm512_extractf32x4_ps(most, 2)) / kMost : NAN;
    }

    template <int kHeads, int kVectors>
    void accumulate(const Tile& tile, int64_t head, int64_t d, const uint32_t (*weights)[kWords],
                    const float (*factors)[2]) const {
        __m512i sums[2][kHeads][kVectors];
#pragma GCC unroll 8
        for (int h = 0; h < kHeads; ++h)
#pragma GCC unroll 8
            for (int v = 0; v < kVectors; ++v) sums[0][h][v] = sums[1][h][v] = _mm512_setzero_si512();
#pragma GCC unroll 4
        for (int64_t word = 0; word < kWords; ++word) {
            const int64_t line = (word * head_dim() + d) * 4;
#pragma GCC unroll 8
            for (int v = 0; v < kVectors; ++v) {
                const __m512i value = _mm512_loadu_si512(tile.value + line + v * 64);
                prefetch_line(tile.next_value + d * 16 + (word * kVectors + v) * 64);  // in the order of memory
#pragma GCC unroll 8
                for (int h = 0; h < kHeads; ++h)
                    sums[word / 2][h][v] =
                        _mm512_dpbusd_epi32(sums[word / 2][h][v], broadcast(weights[h][word]), value);
            }
        }
#pragma GCC unroll 8
        for (int h = 0; h < kHeads; ++h)
#pragma GCC unroll 8
            for (int v = 0; v < kVectors; ++v) {
                float* accumulator = span_.accumulator + (head + h) * head_dim() + d + v * 16;
                __m512 output = _mm512_loadu_ps(accumulator);
#pragma GCC unroll 2
                for (int half = 0; half < 2; ++half)
                    output =
                        _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[half][h][v]), _mm512_set1_ps(factors[h][half]), output);
                _mm512_storeu_ps(accumulator, output);
            }
    }

    static __m512i broadcast(uint32_t word) { return _mm512_set1_epi32(static_cast<int>(word)); }

    const Span& span_;
    Query* queries_;   // [heads]
    uint32_t* bytes_;  // high and low words of the queries [heads, 2, words]
};

}  // namespace
}  // namespace pacpu
