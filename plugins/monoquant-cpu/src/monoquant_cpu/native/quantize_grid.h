// Scale and zero point of a group, as monoquant/numerics/affine.py computes them: in double precision, with the scale
// rounded away from zero to its storage dtype.
#pragma once
#include <stdint.h>
#include <string.h>

#include "api.h"

// Everything that files for different instruction sets include is in anonymous namespaces: the linker keeps one of
// several equal inline functions, and one compiled for AVX-512 must not be run by others.
namespace {

struct Grid {
    float step;  // the stored scale, widened
    int32_t zero_point;
};

inline uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// The smallest float >= magnitude, which is finite and >= 0. IEEE floats of one sign are ordered like their bits.
inline float float_above(double magnitude) {
    const float near = static_cast<float>(magnitude);
    return from_bits(bits_of(near) + (static_cast<double>(near) < magnitude));
}

// The bits of the smallest bfloat16 >= magnitude; inf where there is none.
inline uint16_t bfloat16_above(float magnitude) { return static_cast<uint16_t>((bits_of(magnitude) + 0xFFFF) >> 16); }

constexpr uint32_t kHalfInfinity = 0x7C00;
constexpr uint32_t kHalfExponentGap = 112;  // exponent bias of float32 less that of float16

// The bits of the smallest float16 >= magnitude; inf where there is none.
inline uint16_t float16_above(float magnitude) {
    const uint32_t bits = bits_of(magnitude);
    if (bits < (kHalfExponentGap + 1) << 23) {  // subnormal as float16: a multiple of 2^-24
        const float units = magnitude * 0x1p24f;
        const uint32_t whole = static_cast<uint32_t>(units);
        return static_cast<uint16_t>(whole + (static_cast<float>(whole) < units));
    }
    const uint32_t half = ((bits + 0x1FFF) >> 13) - (kHalfExponentGap << 10);
    return static_cast<uint16_t>(half < kHalfInfinity ? half : kHalfInfinity);
}

// The value of a float16 >= 0.
inline float float16_value(uint32_t bits) {
    if (bits < 1 << 10) return static_cast<float>(bits) * 0x1p-24f;
    if (bits == kHalfInfinity) return from_bits(0x7F800000);
    return from_bits((bits << 13) + (kHalfExponentGap << 23));
}

// Stores a scale of this sign and at least this magnitude, and returns it as stored.
inline float store_scale(double magnitude, bool negative, int32_t dtype, void *scales, int64_t index) {
    float above = float_above(magnitude);
    const uint32_t sign = negative;
    if (dtype == MQ_FLOAT32) {
        above = from_bits(bits_of(above) | sign << 31);
        static_cast<float *>(scales)[index] = above;
        return above;
    }
    const bool half = dtype == MQ_FLOAT16;
    const uint32_t bits = half ? float16_above(above) : bfloat16_above(above);
    static_cast<uint16_t *>(scales)[index] = static_cast<uint16_t>(bits | sign << 15);
    above = half ? float16_value(bits) : from_bits(bits << 16);
    return from_bits(bits_of(above) | sign << 31);
}

// value is in 0..15: adding and subtracting 2^52 rounds it to the nearest integer, half to even.
inline int32_t nearest_code(double value) { return static_cast<int32_t>((value + 0x1p52) - 0x1p52); }

// The grid of a group whose values lie in [low, high], low <= 0 <= high; its scale is stored.
inline Grid choose_grid(double low, double high, const mq_quantize_task &task, int64_t index) {
    if (!task.symmetric) {
        const double exact = high / 15 - low / 15;
        const float step = store_scale(exact == 0 ? 1 : exact, false, task.scale_dtype, task.scale, index);
        return {step, nearest_code(-low / static_cast<double>(step))};
    }
    const bool negative_leads = -low >= high;
    const double lowest_code = (negative_leads ? -low : high) / 8;
    const double highest_code = (negative_leads ? high : -low) / 7.5;  // half a step beyond code 7 rounds to it
    const double exact = lowest_code > highest_code ? lowest_code : highest_code;
    return {store_scale(exact == 0 ? 1 : exact, !negative_leads, task.scale_dtype, task.scale, index), 8};
}

}  // namespace
