// The ISPC kernel of one tile: lanes are tokens for the scores and dimensions for the output, so that nothing is summed
// across lanes. Compiled once per target and cache element: SYMBOL names the function, ELEMENT_FLOAT32, _FLOAT16,
// _BFLOAT16 or _INT8 the element; TO_FLOAT and FROM_FLOAT name the conversions of activations of that element.
// Every vector access is (uniform pointer + uniform offset)[programIndex]: anything else becomes a gather.

#define TILE_TOKENS 16
#define CACHE_LINE_BYTES 64
#define MAXIMUM_SLACK 8.0f

// Heads that share each loaded K and V, and vectors of the output that four of them keep in registers.
#ifdef ISPC_TARGET_AVX2
#define HEAD_BLOCK 4
#define VECTOR_LANES 8
#define TOKEN_VECTORS 2
#define FOUR_HEADS_VECTORS 2
#else
#define HEAD_BLOCK 8
#define VECTOR_LANES 16
#define TOKEN_VECTORS 1
#define FOUR_HEADS_VECTORS 4
#endif

// A word is what lies in one lane of the tile; PACK elements are in it.
#if defined(ELEMENT_FLOAT32)
#define PACK 1
typedef float Word;
static inline float part(float word, uniform int index) { return word; }
#elif defined(ELEMENT_FLOAT16)
#define PACK 1
typedef unsigned int16 Word;
static inline float part(unsigned int16 word, uniform int index) { return half_to_float(word); }
#elif defined(ELEMENT_BFLOAT16)
#define PACK 2
typedef unsigned int32 Word;
static inline float part(unsigned int32 word, uniform int index) {
    return floatbits(index == 0 ? word << 16 : word & 0xffff0000);
}
#else
#define PACK 4
typedef int32 Word;
static inline float part(int32 word, uniform int index) { return (float)((word << (24 - 8 * index)) >> 24); }
#endif

static inline Word load(const uniform Word* uniform words, uniform int offset) {
    return (words + offset)[programIndex];
}

// Into L2: prefetching into L1 was half as fast.
template <int vectors>
static inline void prefetch(const uniform Word* uniform words) {
#pragma unroll
    for (uniform int i = 0; i < vectors * VECTOR_LANES; i += CACHE_LINE_BYTES / sizeof(uniform Word))
        prefetch_l2(words + i);
}

// 0 below 2^-126; keeps NaN. The polynomial is the Taylor series: relative error 2e-7 on [-0.5, 0.5].
static inline float exp2(float x) {
    const float whole = round(x);
    const float rest = x - whole;
    float power = 1.5403530e-4f;
    power = power * rest + 1.3333558e-3f;
    power = power * rest + 9.6181291e-3f;
    power = power * rest + 5.5504109e-2f;
    power = power * rest + 2.4022651e-1f;
    power = power * rest + 6.9314718e-1f;
    power = power * rest + 1.0f;
    const float result = power * floatbits(((int)whole + 127) << 23);
    return x < -126 ? 0.0f : result;
}

// Template parameters, and no masks: otherwise sums would live in memory.
// scores [num_heads, TILE_TOKENS]. Several chains of sums hide the latency of an addition when there are few heads.
template <int num_heads, int chains>
static unmasked inline void score_tile(uniform int head_dim, const uniform float* uniform query,
                                       const uniform Word* uniform key, const uniform Word* uniform next_key,
                                       uniform float* uniform scores) {
    float sums[8 * TOKEN_VECTORS];
#pragma unroll
    for (uniform int i = 0; i < num_heads * chains * TOKEN_VECTORS; i++) sums[i] = 0;
    for (uniform int first = 0; first < head_dim / PACK; first += chains) {
#pragma unroll
        for (uniform int chain = 0; chain < chains; chain++) {
            prefetch<TOKEN_VECTORS>(next_key + (first + chain) * TILE_TOKENS);
#pragma unroll
            for (uniform int v = 0; v < TOKEN_VECTORS; v++) {
                const Word word = load(key, (first + chain) * TILE_TOKENS + v * VECTOR_LANES);
#pragma unroll
                for (uniform int p = 0; p < PACK; p++) {
                    const float element = part(word, p);
#pragma unroll
                    for (uniform int head = 0; head < num_heads; head++)
                        sums[(head * chains + chain) * TOKEN_VECTORS + v] +=
                            query[head * head_dim + (first + chain) * PACK + p] * element;
                }
            }
        }
    }
#pragma unroll
    for (uniform int head = 0; head < num_heads; head++) {
#pragma unroll
        for (uniform int v = 0; v < TOKEN_VECTORS; v++) {
            float score = sums[head * chains * TOKEN_VECTORS + v];
#pragma unroll
            for (uniform int chain = 1; chain < chains; chain++)
                score += sums[(head * chains + chain) * TOKEN_VECTORS + v];
            (scores + head * TILE_TOKENS + v * VECTOR_LANES)[programIndex] = score;
        }
    }
}

static unmasked inline void raise_maximum(uniform int head_dim, uniform float new_maximum,
                                          uniform float* uniform accumulator, uniform float* uniform maximum,
                                          uniform float* uniform sum) {
    const float drop = *maximum - new_maximum;
    const float shrink = exp2(drop);
    for (uniform int i = 0; i < head_dim; i += VECTOR_LANES) (accumulator + i)[programIndex] *= shrink;
    for (uniform int i = 0; i < TILE_TOKENS; i += VECTOR_LANES) (sum + i)[programIndex] *= shrink;
    *maximum = new_maximum;
}

// Turns one head's scores into weights relative to the maximum, which first follows the scores if it must.
static unmasked inline void weigh_tile(uniform int head_dim, uniform int num_tokens, uniform float* uniform scores,
                                       const uniform float* uniform key_scales,
                                       const uniform float* uniform value_scales, uniform float* uniform accumulator,
                                       uniform float* uniform maximum, uniform float* uniform sum) {
    float score[TOKEN_VECTORS];
    float highest = *maximum;
#pragma unroll
    for (uniform int v = 0; v < TOKEN_VECTORS; v++) {
        const uniform int first = v * VECTOR_LANES;
        score[v] = (scores + first)[programIndex];
#ifdef ELEMENT_INT8
        score[v] *= (key_scales + first)[programIndex];
#endif
        if (first + programIndex < num_tokens) highest = max(highest, score[v]);
    }
    if (any(highest > *maximum + MAXIMUM_SLACK))
        raise_maximum(head_dim, reduce_max(highest), accumulator, maximum, sum);
#pragma unroll
    for (uniform int v = 0; v < TOKEN_VECTORS; v++) {
        const uniform int first = v * VECTOR_LANES;
        const float weight = first + programIndex < num_tokens ? exp2(score[v] - *maximum) : 0.0f;
        (sum + first)[programIndex] += weight;
#ifdef ELEMENT_INT8
        (scores + first)[programIndex] = weight * (value_scales + first)[programIndex];
#else
        (scores + first)[programIndex] = weight;
#endif
    }
}

// accumulator[:, d : d + num_vectors * VECTOR_LANES] += weights @ values.
template <int num_heads, int num_vectors>
static unmasked inline void accumulate(uniform int head_dim, uniform int d, const uniform float* uniform weights,
                                       const uniform Word* uniform value, const uniform Word* uniform next_value,
                                       uniform float* uniform accumulator) {
    float state[16];
#pragma unroll
    for (uniform int head = 0; head < num_heads; head++) {
#pragma unroll
        for (uniform int i = 0; i < num_vectors; i++)
            state[head * num_vectors + i] = (accumulator + head * head_dim + d + i * VECTOR_LANES)[programIndex];
    }
    for (uniform int row = 0; row < TILE_TOKENS / PACK; row++) {
        const uniform int first = row * head_dim + d;
        prefetch<num_vectors>(next_value + first);
        Word word[4];
#pragma unroll
        for (uniform int i = 0; i < num_vectors; i++) word[i] = load(value, first + i * VECTOR_LANES);
#pragma unroll
        for (uniform int p = 0; p < PACK; p++) {
            float element[4];
#pragma unroll
            for (uniform int i = 0; i < num_vectors; i++) element[i] = part(word[i], p);
#pragma unroll
            for (uniform int head = 0; head < num_heads; head++) {
                const uniform float weight = weights[head * TILE_TOKENS + row * PACK + p];
#pragma unroll
                for (uniform int i = 0; i < num_vectors; i++) state[head * num_vectors + i] += weight * element[i];
            }
        }
    }
#pragma unroll
    for (uniform int head = 0; head < num_heads; head++) {
#pragma unroll
        for (uniform int i = 0; i < num_vectors; i++)
            (accumulator + head * head_dim + d + i * VECTOR_LANES)[programIndex] = state[head * num_vectors + i];
    }
}

struct TilePointers {
    const uniform Word* uniform key;
    const uniform Word* uniform value;
    const uniform float* uniform key_scales;
    const uniform float* uniform value_scales;
    const uniform Word* uniform next_key;
    const uniform Word* uniform next_value;
};

template <int num_heads, int chains, int num_vectors>
static unmasked inline void attend_heads(uniform int head_dim, uniform int num_tokens,
                                         const uniform TilePointers& tile, const uniform float* uniform query,
                                         uniform float* uniform accumulator, uniform float* uniform maximum,
                                         uniform float* uniform sum) {
    uniform float weights[HEAD_BLOCK * TILE_TOKENS];
    score_tile<num_heads, chains>(head_dim, query, tile.key, tile.next_key, weights);
    for (uniform int head = 0; head < num_heads; head++)
        weigh_tile(head_dim, num_tokens, weights + head * TILE_TOKENS, tile.key_scales, tile.value_scales,
                   accumulator + head * head_dim, maximum + head, sum + head * TILE_TOKENS);
    uniform int d = 0;
    for (; d + num_vectors * VECTOR_LANES <= head_dim; d += num_vectors * VECTOR_LANES)
        accumulate<num_heads, num_vectors>(head_dim, d, weights, tile.value, tile.next_value, accumulator);
    for (; d < head_dim; d += VECTOR_LANES)
        accumulate<num_heads, 1>(head_dim, d, weights, tile.value, tile.next_value, accumulator);
}

#define ATTEND_HEADS(num_heads, chains, num_vectors)                                                          \
    for (; head + num_heads <= group; head += num_heads)                                                      \
    attend_heads<num_heads, chains, num_vectors>(head_dim, num_tokens, tile, query + head * head_dim,         \
                 accumulator + head * head_dim, maximum + head, sum + head * TILE_TOKENS)

export void SYMBOL(uniform int group, uniform int head_dim, uniform int num_tokens, const uniform float* uniform query,
                   const uniform Word* uniform key, const uniform Word* uniform value,
                   const uniform float* uniform key_scales, const uniform float* uniform value_scales,
                   const uniform Word* uniform next_key, const uniform Word* uniform next_value,
                   uniform float* uniform accumulator, uniform float* uniform maximum, uniform float* uniform sum) {
    const uniform TilePointers tile = {key, value, key_scales, value_scales, next_key, next_value};
    uniform int head = 0;
#ifndef ISPC_TARGET_AVX2
    ATTEND_HEADS(8, 1, 2);
#endif
    ATTEND_HEADS(4, 1, FOUR_HEADS_VECTORS);
    ATTEND_HEADS(2, 2, 4);
    ATTEND_HEADS(1, 4, 4);
}

#ifndef ELEMENT_INT8
#ifdef ELEMENT_BFLOAT16
typedef unsigned int16 Activation;
static inline float from_activation(unsigned int16 value) { return floatbits(((unsigned int32)value) << 16); }
static inline unsigned int16 to_activation(float value) {
    const unsigned int32 bits = intbits(value);
    if ((bits & 0x7fffffff) > 0x7f800000) return (unsigned int16)((bits >> 16) | 0x40);
    return (unsigned int16)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
#else
typedef Word Activation;
static inline float from_activation(Word value) { return part(value, 0); }
#ifdef ELEMENT_FLOAT16
static inline Word to_activation(float value) { return float_to_half(value); }
#else
static inline Word to_activation(float value) { return value; }
#endif
#endif

export void TO_FLOAT(const uniform Activation* uniform source, uniform int64 count, uniform float factor,
                     uniform float* uniform target) {
    foreach (i = 0 ... count) target[i] = factor * from_activation(source[i]);
}

export void FROM_FLOAT(const uniform float* uniform source, uniform int64 count, uniform float factor,
                       uniform Activation* uniform target) {
    foreach (i = 0 ... count) target[i] = to_activation(factor * source[i]);
}
#endif
