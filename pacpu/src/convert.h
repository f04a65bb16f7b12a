// Conversions between float and the 16-bit formats, to the nearest even, free of denormal arithmetic:
// a worker inherits the flush-to-zero mode of the thread that made it.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernel.h"

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

inline void load_floats(Element element, const void* source, int count, float* target) {
    const auto* halves = static_cast<const uint16_t*>(source);
    switch (element) {
        case Element::kFloat32:
            std::memcpy(target, source, sizeof(float) * static_cast<size_t>(count));
            break;
        case Element::kFloat16:
            for (int i = 0; i < count; ++i) target[i] = half_to_float(halves[i]);
            break;
        case Element::kBFloat16:
            for (int i = 0; i < count; ++i) target[i] = bfloat16_to_float(halves[i]);
            break;
    }
}

inline void store_floats(Element element, const float* source, int count, void* target) {
    auto* halves = static_cast<uint16_t*>(target);
    switch (element) {
        case Element::kFloat32:
            std::memcpy(target, source, sizeof(float) * static_cast<size_t>(count));
            break;
        case Element::kFloat16:
            for (int i = 0; i < count; ++i) halves[i] = float_to_half(source[i]);
            break;
        case Element::kBFloat16:
            for (int i = 0; i < count; ++i) halves[i] = float_to_bfloat16(source[i]);
            break;
    }
}

}  // namespace pacpu
