// Softmax over a tile of 16 tokens in one AVX-512 register, shared by the kernels written with intrinsics.
#pragma once

#include <immintrin.h>

#include "span_walk.h"

namespace pacpu {
namespace {

// 0 below 2^-126; keeps NaN. Taylor series: relative error 3e-6 on [-0.5, 0.5], far below that of 8-bit weights.
inline __m512 exp2_tile(__m512 x) {
    const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 rest = _mm512_sub_ps(x, whole);
    __m512 power = _mm512_set1_ps(1.3333558e-3f);
    power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(9.6181291e-3f));
    power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(5.5504109e-2f));
    power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(2.4022651e-1f));
    power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(6.9314718e-1f));
    power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(1.0f));
    const __mmask16 kept = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-126.0f), _CMP_NLT_UQ);
    return _mm512_maskz_scalef_ps(kept, power, whole);
}

inline __mmask16 mask_of(int64_t num_tokens) { return static_cast<__mmask16>((1u << num_tokens) - 1); }

// Raises one head's maximum to the scores if it must, and rescales what was summed up under the old one.
inline void follow_maximum(const Span& span, int64_t head, int64_t num_tokens, __m512 scores) {
    float& maximum = span.maximum[head];
    const __m512 limit = _mm512_set1_ps(maximum + kMaximumSlack);
    if (__builtin_expect(_mm512_mask_cmp_ps_mask(mask_of(num_tokens), scores, limit, _CMP_GT_OQ) == 0, 1)) return;
    const float highest = _mm512_mask_reduce_max_ps(mask_of(num_tokens), scores);
    const __m512 shrink = exp2_tile(_mm512_set1_ps(maximum - highest));
    float *accumulator = span.accumulator + head * span.layout.head_dim, *sum = span.sum + head * kTileTokens;
    for (int64_t d = 0; d < span.layout.head_dim; d += 16)
        _mm512_storeu_ps(accumulator + d, _mm512_mul_ps(shrink, _mm512_loadu_ps(accumulator + d)));
    _mm512_storeu_ps(sum, _mm512_mul_ps(shrink, _mm512_loadu_ps(sum)));
    maximum = highest;
}

// One head's weights relative to its maximum, added to its sum; zero beyond the tile's tokens.
inline __m512 weigh_scores(const Span& span, int64_t head, int64_t num_tokens, __m512 scores) {
    __m512 weights = exp2_tile(_mm512_sub_ps(scores, _mm512_set1_ps(span.maximum[head])));
    weights = _mm512_maskz_mov_ps(mask_of(num_tokens), weights);
    float* sum = span.sum + head * kTileTokens;
    _mm512_storeu_ps(sum, _mm512_add_ps(weights, _mm512_loadu_ps(sum)));
    return weights;
}

inline __m512 weigh_tile(const Span& span, int64_t head, int64_t num_tokens, __m512 scores) {
    follow_maximum(span, head, num_tokens, scores);
    return weigh_scores(span, head, num_tokens, scores);
}

// A core drops prefetches that find its miss buffers full: asking twice gained 5 to 10 % of bandwidth.
inline void prefetch_line(const char* line) {
    _mm_prefetch(line, _MM_HINT_T1);
    _mm_prefetch(line + 32, _MM_HINT_T1);
}

}  // namespace
}  // namespace pacpu
