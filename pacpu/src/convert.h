// Conversions between float and the 16-bit formats, to the nearest even, free of denormal arithmetic:
// a worker inherits the flush-to-zero mode of the thread that made it.
#pragma once

#include <cstdint>
#include <cstring>

#include "layout.h"

namespace pacpu {

inline float bits_to_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline uint32_t float_to_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float half_to_float(uint16_t half) {
    const uint32_t magnitude = half & 0x7fffu;
    const float subnormal = static_cast<float>(magnitude) * bits_to_float(0x33800000u);  // * 2^-24
    const uint32_t exponent_shift = magnitude >= 0x7c00u ? 224u << 23 : 112u << 23;
    const uint32_t normal = (magnitude << 13) + exponent_shift;
    const uint32_t bits = magnitude < 0x0400u ? float_to_bits(subnormal) : normal;
    return bits_to_float(bits | (half & 0x8000u) << 16);
}

inline uint16_t float_to_half(float value) {
    const uint32_t bits = float_to_bits(value);
    const uint32_t sign = bits >> 16 & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
    if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // rounds to 2^16 or more
    if (magnitude < 0x38800000u) {
        // Adding 0.5 puts the unit of a half subnormal, 2^-24, at the last mantissa bit: the addition rounds.
        const float rounded = bits_to_float(magnitude) + 0.5f;
        return static_cast<uint16_t>(sign | (float_to_bits(rounded) - 0x3f000000u));
    }
    const uint32_t odd = magnitude >> 13 & 1u;
    return static_cast<uint16_t>(sign | ((magnitude - 0x38000000u + 0xfffu + odd) >> 13));
}

inline float bfloat16_to_float(uint16_t value) { return bits_to_float(static_cast<uint32_t>(value) << 16); }

inline uint16_t float_to_bfloat16(float value) {
    const uint32_t bits = float_to_bits(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 0x40u);
    return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

template <Element kElement>
float element_to_float(const void* elements, int64_t index) {
    if constexpr (kElement == Element::kFloat32) return static_cast<const float*>(elements)[index];
    if constexpr (kElement == Element::kFloat16) return half_to_float(static_cast<const uint16_t*>(elements)[index]);
    if constexpr (kElement == Element::kBFloat16)
        return bfloat16_to_float(static_cast<const uint16_t*>(elements)[index]);
    if constexpr (kElement == Element::kInt8) return static_cast<const int8_t*>(elements)[index];
}

template <Element kElement>
void float_to_element(float value, void* elements, int64_t index) {
    if constexpr (kElement == Element::kFloat32) static_cast<float*>(elements)[index] = value;
    if constexpr (kElement == Element::kFloat16) static_cast<uint16_t*>(elements)[index] = float_to_half(value);
    if constexpr (kElement == Element::kBFloat16) static_cast<uint16_t*>(elements)[index] = float_to_bfloat16(value);
}

}  // namespace pacpu
