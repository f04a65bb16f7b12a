// The portable kernel: plain loops in lanes that any compiler vectorises. Each K and V element is converted once for
// all query heads of its KV head.
#include "kernel_cpp.h"

#include <cmath>

#include "convert.h"

namespace pacpu {
namespace {

constexpr int kLanes = 16;
constexpr int kTileTokens = 32;
constexpr int kMaxHeadDim = 256;

float dot(const float* a, const float* b, int size) {
    float lanes[kLanes] = {};
    for (int i = 0; i < size; i += kLanes)
        for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += a[i + lane] * b[i + lane];
    float total = 0;
    for (float lane : lanes) total += lane;
    return total;
}

// Turns scores into weights relative to the new maximum; returns the factor by which the old state shrinks.
float update_softmax(float* scores, int num_tokens, float* maximum, float* sum) {
    float highest = *maximum;
    for (int t = 0; t < num_tokens; ++t) highest = scores[t] > highest ? scores[t] : highest;
    const float shrink = std::exp(*maximum - highest);
    float tile_sum = 0;
    for (int t = 0; t < num_tokens; ++t) {
        scores[t] = std::exp(scores[t] - highest);
        tile_sum += scores[t];
    }
    *maximum = highest;
    *sum = *sum * shrink + tile_sum;
    return shrink;
}

template <Element kElement>
void attend(int32_t num_heads, int32_t head_dim, int32_t num_tokens, const float* query, const void* const* keys,
            const void* const* values, float* accumulator, float* maximum, float* sum) {
    float key_tile[kTileTokens][kMaxHeadDim];
    float value_tile[kTileTokens][kMaxHeadDim];
    float weights[kTileTokens];
    for (int32_t first = 0; first < num_tokens; first += kTileTokens) {
        const int tile = num_tokens - first < kTileTokens ? num_tokens - first : kTileTokens;
        for (int t = 0; t < tile; ++t) {
            load_floats(kElement, keys[first + t], head_dim, key_tile[t]);
            load_floats(kElement, values[first + t], head_dim, value_tile[t]);
        }
        for (int32_t head = 0; head < num_heads; ++head) {
            float* state = accumulator + static_cast<int64_t>(head) * head_dim;
            const float* head_query = query + static_cast<int64_t>(head) * head_dim;
            for (int t = 0; t < tile; ++t) weights[t] = dot(head_query, key_tile[t], head_dim);
            const float shrink = update_softmax(weights, tile, maximum + head, sum + head);
            for (int i = 0; i < head_dim; ++i) state[i] *= shrink;
            for (int t = 0; t < tile; ++t)
                for (int i = 0; i < head_dim; ++i) state[i] += weights[t] * value_tile[t][i];
        }
    }
}

}  // namespace

const Target kPortableTarget = {
    "cpp",
    [] { return true; },
    {attend<Element::kFloat32>, attend<Element::kFloat16>, attend<Element::kBFloat16>},
};

}  // namespace pacpu
