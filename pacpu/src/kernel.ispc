// The ISPC kernel, vectorised over head_dim. Compiled once per target and cache element: SYMBOL names the function,
// ELEMENT_FLOAT32, ELEMENT_FLOAT16 or ELEMENT_BFLOAT16 the element. Contract: SpanKernel in kernel.h.
// Every vector access is (uniform pointer + uniform offset)[programIndex]: anything else becomes a gather.

#define TILE_TOKENS 32
#define TOKEN_BLOCK 4
#define HEAD_BLOCK 4
#define CACHE_LINE_BYTES 64
#define LOWEST_FLOAT -3.402823466e38f

// Vectors of the accumulator that stay in registers for each of HEAD_BLOCK heads: AVX2 has half the registers.
#ifdef ISPC_TARGET_AVX2
#define DIM_BLOCK 2
#else
#define DIM_BLOCK 4
#endif

#if defined(ELEMENT_FLOAT32)
typedef float Element;
static inline float to_float(float value) { return value; }
#elif defined(ELEMENT_FLOAT16)
typedef unsigned int16 Element;
static inline float to_float(unsigned int16 value) { return half_to_float(value); }
#else
typedef unsigned int16 Element;
static inline float to_float(unsigned int16 value) { return floatbits(((unsigned int32)value) << 16); }
#endif

static inline float load(const uniform Element* uniform row, uniform int offset) {
    return to_float((row + offset)[programIndex]);
}

// The next tile may lie in another block, where the hardware prefetcher does not follow. Into L2: prefetching to L1 was
// half as fast on random blocks, and distances of 16 and 64 tokens were no better than the tile's 32.
static inline void prefetch_row(const uniform Element* uniform row, uniform int head_dim) {
    const uniform int8* uniform bytes = (const uniform int8* uniform)row;
    for (uniform int i = 0; i < head_dim * sizeof(uniform Element); i += CACHE_LINE_BYTES) prefetch_l2(bytes + i);
}

// One step of summing vectors across their lanes: of segments of `size` lanes in a, then in b, halves are added.
static inline float add_halves(float a, float b, const uniform int size) {
    const uniform int half = size / 2;
    const int low = programIndex + (programIndex & -half);
    return shuffle(a, b, low) + shuffle(a, b, low + half);
}

// The lane sums of TOKEN_BLOCK vectors: seven shared steps where four reduce_add take sixteen.
static inline void store_sums(varying float* uniform vectors, uniform float* uniform sums) {
    const float first = add_halves(vectors[0], vectors[1], programCount);
    const float second = add_halves(vectors[2], vectors[3], programCount);
    float all = add_halves(first, second, programCount / 2);
    all = add_halves(all, all, programCount / 4);
    if (programCount == 16) all = add_halves(all, all, 2);
    if (programIndex < TOKEN_BLOCK) sums[programIndex] = all;
}

// scores [num_heads, TILE_TOKENS] of TOKEN_BLOCK tokens. num_heads is a constant where this is inlined.
static inline void score_tokens(const uniform int num_heads, uniform int head_dim, const uniform float* uniform query,
                                const uniform Element* uniform* uniform keys, uniform float* uniform scores) {
    float partial[HEAD_BLOCK * TOKEN_BLOCK];
#pragma unroll
    for (uniform int i = 0; i < num_heads * TOKEN_BLOCK; i++) partial[i] = 0;
    const uniform Element* uniform key0 = keys[0];
    const uniform Element* uniform key1 = keys[1];
    const uniform Element* uniform key2 = keys[2];
    const uniform Element* uniform key3 = keys[3];
    for (uniform int d = 0; d < head_dim; d += programCount) {
        const float element0 = load(key0, d);
        const float element1 = load(key1, d);
        const float element2 = load(key2, d);
        const float element3 = load(key3, d);
#pragma unroll
        for (uniform int head = 0; head < num_heads; head++) {
            const float q = (query + head * head_dim + d)[programIndex];
            partial[head * TOKEN_BLOCK + 0] += q * element0;
            partial[head * TOKEN_BLOCK + 1] += q * element1;
            partial[head * TOKEN_BLOCK + 2] += q * element2;
            partial[head * TOKEN_BLOCK + 3] += q * element3;
        }
    }
#pragma unroll
    for (uniform int head = 0; head < num_heads; head++)
        store_sums(partial + head * TOKEN_BLOCK, scores + head * TILE_TOKENS);
}

// Turns one head's scores into weights relative to the new maximum; returns the factor for the old state.
static inline uniform float update_softmax(uniform float* uniform scores, uniform int num_tokens,
                                           uniform float* uniform maximum, uniform float* uniform sum) {
    float highest = LOWEST_FLOAT;
    for (uniform int t = 0; t < TILE_TOKENS; t += programCount) {
        const float score = (scores + t)[programIndex];
        highest = max(highest, t + programIndex < num_tokens ? score : LOWEST_FLOAT);
    }
    const uniform float old_maximum = *maximum;
    const uniform float new_maximum = max(old_maximum, reduce_max(highest));
    const uniform float shrink = old_maximum == new_maximum ? 1.0f : exp(old_maximum - new_maximum);
    float tile_sum = 0;
    for (uniform int t = 0; t < TILE_TOKENS; t += programCount) {
        const float weight = exp((scores + t)[programIndex] - new_maximum);
        const float kept = t + programIndex < num_tokens ? weight : 0.0f;
        (scores + t)[programIndex] = kept;
        tile_sum += kept;
    }
    *maximum = new_maximum;
    *sum = *sum * shrink + reduce_add(tile_sum);
    return shrink;
}

// accumulator[:, d : d + num_vectors * programCount] = shrink * itself + weights @ values.
// num_heads and num_vectors are constants where this is inlined.
static inline void accumulate(const uniform int num_heads, const uniform int num_vectors, uniform int head_dim,
                              uniform int d, uniform int num_tokens, const uniform Element* uniform* uniform values,
                              const uniform float* uniform weights, const uniform float* uniform shrink,
                              uniform float* uniform accumulator) {
    float state[HEAD_BLOCK * DIM_BLOCK];
#pragma unroll
    for (uniform int head = 0; head < num_heads; head++) {
#pragma unroll
        for (uniform int i = 0; i < num_vectors; i++)
            state[head * DIM_BLOCK + i] =
                (accumulator + head * head_dim + d + i * programCount)[programIndex] * shrink[head];
    }
    for (uniform int t = 0; t < num_tokens; t++) {
        const uniform Element* uniform row = values[t];
        float value[DIM_BLOCK];
#pragma unroll
        for (uniform int i = 0; i < num_vectors; i++) value[i] = load(row, d + i * programCount);
#pragma unroll
        for (uniform int head = 0; head < num_heads; head++) {
            const uniform float weight = weights[head * TILE_TOKENS + t];
#pragma unroll
            for (uniform int i = 0; i < num_vectors; i++) state[head * DIM_BLOCK + i] += weight * value[i];
        }
    }
#pragma unroll
    for (uniform int head = 0; head < num_heads; head++) {
#pragma unroll
        for (uniform int i = 0; i < num_vectors; i++)
            (accumulator + head * head_dim + d + i * programCount)[programIndex] = state[head * DIM_BLOCK + i];
    }
}

static inline void attend_tile(const uniform int num_heads, uniform int head_dim, uniform int num_tokens,
                               uniform int next_tokens, const uniform float* uniform query,
                               const uniform Element* uniform* uniform keys,
                               const uniform Element* uniform* uniform values, uniform float* uniform accumulator,
                               uniform float* uniform maximum, uniform float* uniform sum) {
    uniform float weights[HEAD_BLOCK * TILE_TOKENS];
    uniform float shrink[HEAD_BLOCK];
    for (uniform int t = 0; t < num_tokens; t += TOKEN_BLOCK) {
        for (uniform int next = t; next < min(next_tokens, t + TOKEN_BLOCK); next++) {
            prefetch_row(keys[TILE_TOKENS + next], head_dim);
            prefetch_row(values[TILE_TOKENS + next], head_dim);
        }
        score_tokens(num_heads, head_dim, query, keys + t, weights + t);
    }
    for (uniform int head = 0; head < num_heads; head++)
        shrink[head] = update_softmax(weights + head * TILE_TOKENS, num_tokens, maximum + head, sum + head);
    uniform int d = 0;
    for (; d + DIM_BLOCK * programCount <= head_dim; d += DIM_BLOCK * programCount)
        accumulate(num_heads, DIM_BLOCK, head_dim, d, num_tokens, values, weights, shrink, accumulator);
    for (; d < head_dim; d += programCount)
        accumulate(num_heads, 1, head_dim, d, num_tokens, values, weights, shrink, accumulator);
}

export void SYMBOL(uniform int num_heads, uniform int head_dim, uniform int num_tokens,
                   const uniform float* uniform query, const uniform Element* uniform* uniform keys,
                   const uniform Element* uniform* uniform values, uniform float* uniform accumulator,
                   uniform float* uniform maximum, uniform float* uniform sum) {
    for (uniform int first = 0; first < num_tokens; first += TILE_TOKENS) {
        const uniform int tile = min(num_tokens - first, TILE_TOKENS);
        const uniform Element* uniform* uniform tile_keys = keys + first;
        const uniform Element* uniform* uniform tile_values = values + first;
        // Later head blocks find the next tile on its way already.
        uniform int next_tile = min(num_tokens - first - tile, TILE_TOKENS);
        uniform int head = 0;
        while (head < num_heads) {
            const uniform float* uniform head_query = query + head * head_dim;
            uniform float* uniform state = accumulator + head * head_dim;
            if (head + 4 <= num_heads) {
                attend_tile(4, head_dim, tile, next_tile, head_query, tile_keys, tile_values, state, maximum + head,
                            sum + head);
                head += 4;
            } else if (head + 2 <= num_heads) {
                attend_tile(2, head_dim, tile, next_tile, head_query, tile_keys, tile_values, state, maximum + head,
                            sum + head);
                head += 2;
            } else {
                attend_tile(1, head_dim, tile, next_tile, head_query, tile_keys, tile_values, state, maximum + head,
                            sum + head);
                head += 1;
            }
            next_tile = 0;
        }
    }
}
