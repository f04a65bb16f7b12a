#include "kv_store.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "convert.h"

namespace pacpu {
namespace {

constexpr int64_t kMaxHeadDim = 256;

template <typename Bits, int64_t kPack>
void scatter(const KvLayout& layout, const void* key, const void* value, char* piece, int64_t token) {
    const int64_t tile = token / kTileTokens * layout.tile_bytes();
    const int64_t t = token % kTileTokens;
    const auto *key_bits = static_cast<const Bits*>(key), *value_bits = static_cast<const Bits*>(value);
    auto* key_tile = reinterpret_cast<Bits*>(piece + tile) + t * kPack;
    auto* value_tile =
        reinterpret_cast<Bits*>(piece + tile + layout.side_bytes()) + t / kPack * layout.head_dim * kPack + t % kPack;
    for (int64_t d = 0; d < layout.head_dim; d += kPack)
        for (int64_t i = 0; i < kPack; ++i) key_tile[d * kTileTokens + i] = key_bits[d + i];
    for (int64_t d = 0; d < layout.head_dim; ++d) value_tile[d * kPack] = value_bits[d];
}

// Returns the scale. Written so that compilers vectorise it: it runs for every new token and head.
float quantize(const float* values, int64_t count, int8_t* quantized) {
    constexpr uint32_t kInfinity = 0x7f800000;
    uint32_t largest_bits = 0;  // of magnitudes: ordered as the magnitudes are
    for (int64_t i = 0; i < count; ++i) largest_bits = std::max(largest_bits, float_to_bits(values[i]) & 0x7fffffffu);
    const float largest = bits_to_float(largest_bits);
    // A token that small counts as zero: its factor could overflow.
    const float factor = largest_bits < kInfinity && largest > 1e-30f ? 127.0f / largest : 0.0f;
    for (int64_t i = 0; i < count; ++i) {
        const float scaled = largest_bits < kInfinity ? values[i] * factor : 0.0f;
        quantized[i] = static_cast<int8_t>(static_cast<int32_t>(scaled + std::copysign(0.5f, scaled)));
    }
    return largest_bits < kInfinity ? largest / 127.0f : std::numeric_limits<float>::quiet_NaN();
}

}  // namespace

void store_token(const KvLayout& layout, const Target& target, Element source, const char* key, const char* value,
                 char* piece, int64_t token) {
    float floats[2][kMaxHeadDim];
    uint16_t rounded[2][kMaxHeadDim];
    const void *key_elements = key, *value_elements = value;
    if (source != layout.element) {
        const ToFloat to_float = target.to_float[static_cast<int>(source)];
        to_float(key, layout.head_dim, 1.0f, floats[0]);
        to_float(value, layout.head_dim, 1.0f, floats[1]);
        key_elements = floats[0];
        value_elements = floats[1];
    }
    switch (layout.element) {
        case Element::kInt8: {
            int8_t quantized[2][kMaxHeadDim];
            auto* key_scales = reinterpret_cast<float*>(piece + layout.key_scale_offset());
            auto* value_scales = reinterpret_cast<float*>(piece + layout.value_scale_offset());
            key_scales[token] = quantize(floats[0], layout.head_dim, quantized[0]);
            value_scales[token] = quantize(floats[1], layout.head_dim, quantized[1]);
            return scatter<uint8_t, 4>(layout, quantized[0], quantized[1], piece, token);
        }
        case Element::kFloat32:
            return scatter<uint32_t, 1>(layout, key_elements, value_elements, piece, token);
        case Element::kFloat16:
        case Element::kBFloat16:
            if (source != layout.element) {
                const FromFloat from_float = target.from_float[static_cast<int>(layout.element)];
                from_float(floats[0], layout.head_dim, 1.0f, rounded[0]);
                from_float(floats[1], layout.head_dim, 1.0f, rounded[1]);
                key_elements = rounded[0];
                value_elements = rounded[1];
            }
            if (layout.element == Element::kFloat16)
                return scatter<uint16_t, 1>(layout, key_elements, value_elements, piece, token);
            return scatter<uint16_t, 2>(layout, key_elements, value_elements, piece, token);
    }
}

}  // namespace pacpu
