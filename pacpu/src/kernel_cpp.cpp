// The portable kernel: plain loops over a tile in lanes that any compiler vectorises.
#include "kernel_cpp.h"

#include <cmath>
#include <limits>

#include "convert.h"
#include "span_walk.h"

namespace pacpu {
namespace {

constexpr int64_t kMaxHeadDim = 256;

template <Element kElement>
class PortableKernel {
  public:
    static constexpr bool kStreams = false;

    explicit PortableKernel(const Span& span) : span_(span) {}

    void attend(const Tile& tile, int64_t kv_head) {
        unpack(tile);
        const int64_t head_dim = span_.layout.head_dim;
        for (int64_t head = kv_head * span_.group; head < (kv_head + 1) * span_.group; ++head) {
            float weights[kTileTokens] = {};
            const float* query = span_.query + head * head_dim;
            for (int64_t d = 0; d < head_dim; ++d)
                for (int64_t t = 0; t < kTileTokens; ++t) weights[t] += query[d] * key_[d][t];
            float* accumulator = span_.accumulator + head * head_dim;
            weigh(tile, head, accumulator, weights);
            for (int64_t t = 0; t < tile.num_tokens; ++t)
                for (int64_t d = 0; d < head_dim; ++d) accumulator[d] += weights[t] * value_[t][d];
        }
    }

  private:
    void unpack(const Tile& tile) {
        constexpr int64_t kPack = pack_of(kElement);
        const int64_t head_dim = span_.layout.head_dim;
        for (int64_t d = 0; d < head_dim; ++d)
            for (int64_t t = 0; t < kTileTokens; ++t) {
                key_[d][t] = element_to_float<kElement>(tile.key, (d / kPack * kTileTokens + t) * kPack + d % kPack);
                value_[t][d] = element_to_float<kElement>(tile.value, (t / kPack * head_dim + d) * kPack + t % kPack);
            }
    }

    // Turns one head's scores into weights relative to the maximum, which first follows the scores if it must.
    void weigh(const Tile& tile, int64_t head, float* accumulator, float* scores) {
        float& maximum = span_.maximum[head];
        float* sum = span_.sum + head * kTileTokens;
        float highest = maximum;
        for (int64_t t = 0; t < tile.num_tokens; ++t) {
            if (kElement == Element::kInt8) scores[t] *= tile.key_scales[t];
            highest = scores[t] > highest ? scores[t] : highest;
        }
        if (highest > maximum + kMaximumSlack) {
            const float shrink = std::exp2(maximum - highest);
            for (int64_t d = 0; d < span_.layout.head_dim; ++d) accumulator[d] *= shrink;
            for (int64_t t = 0; t < kTileTokens; ++t) sum[t] *= shrink;
            maximum = highest;
        }
        for (int64_t t = 0; t < tile.num_tokens; ++t) {
            const float weight = std::exp2(scores[t] - maximum);
            sum[t] += weight;
            scores[t] = kElement == Element::kInt8 ? weight * tile.value_scales[t] : weight;
        }
    }

    const Span& span_;
    float key_[kMaxHeadDim][kTileTokens];
    float value_[kTileTokens][kMaxHeadDim];
};

template <Element kElement>
void to_float(const void* source, int64_t count, float factor, float* target) {
    for (int64_t i = 0; i < count; ++i) target[i] = factor * element_to_float<kElement>(source, i);
}

template <Element kElement>
void from_float(const float* source, int64_t count, float factor, void* target) {
    for (int64_t i = 0; i < count; ++i) float_to_element<kElement>(factor * source[i], target, i);
}

}  // namespace

const Target kPortableTarget = {
    "cpp",
    [] { return true; },
    {attend_span<PortableKernel<Element::kFloat32>>, attend_span<PortableKernel<Element::kFloat16>>,
     attend_span<PortableKernel<Element::kBFloat16>>, attend_span<PortableKernel<Element::kInt8>>},
    {to_float<Element::kFloat32>, to_float<Element::kFloat16>, to_float<Element::kBFloat16>},
    {from_float<Element::kFloat32>, from_float<Element::kFloat16>, from_float<Element::kBFloat16>},
};

}  // namespace pacpu
