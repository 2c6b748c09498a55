// Rows of x at the columns of a layout, and their rounding to 8 bits.
#pragma once
#include <string.h>

#include "product_layout.h"

namespace {

// A row of x, zeros in the columns that the matrix does not have.
inline void spread_activations(const mq_matrix &weight, const Layout &layout, const float *x, float *to) {
    if (layout.in_place) {
        memcpy(to, x, sizeof(float) * weight.columns);
        memset(to + weight.columns, 0, sizeof(float) * (layout.columns - weight.columns));
        return;
    }
    memset(to, 0, sizeof(float) * layout.columns);
    for (int64_t g = 0; g < layout.groups; ++g) {
        const int64_t first = g * weight.group_size, left = weight.columns - first;
        const int64_t size = left < weight.group_size ? left : weight.group_size;
        memcpy(to + g * layout.group_columns, x + first, sizeof(float) * size);
    }
}

// nan and inf count as the largest.
inline float largest_magnitude(const float *x, int64_t count) {
    uint32_t largest = 0;  // floats without sign are ordered like their bits
    for (int64_t i = 0; i < count; ++i) {
        uint32_t bits;
        memcpy(&bits, x + i, sizeof(bits));
        bits &= 0x7fffffff;
        largest = bits > largest ? bits : largest;
    }
    float magnitude;
    memcpy(&magnitude, &largest, sizeof(magnitude));
    return magnitude;
}

// Codes and scale of COUNT values. `mean`: scale * sum of the codes / kWidestGrain, which cannot overflow.
template <int COUNT>
inline void quantize_grain(const float *x, int8_t *codes, float *scale, float *mean) {
    const float magnitude = largest_magnitude(x, COUNT);
    const bool is_finite = magnitude <= __FLT_MAX__;
    // Below 1e-36, 127 / magnitude would overflow: nothing is lost by calling that zero.
    if (!is_finite || magnitude < 1e-36f) {
        memset(codes, 0, COUNT);
        *scale = *mean = is_finite ? 0 : __builtin_nanf("");
        return;
    }
    const float steps = 127 / magnitude;
    int32_t sum = 0;
    for (int i = 0; i < COUNT; ++i) {
        // Adding 1.5 * 2^23 leaves no bits for fractions: it rounds to nearest even, and the low bits hold the integer.
        const float shifted = x[i] * steps + 12582912.0f;
        int32_t bits;
        memcpy(&bits, &shifted, sizeof(bits));
        const int32_t code = bits - 0x4b400000;
        codes[i] = static_cast<int8_t>(code);
        sum += code;
    }
    *scale = magnitude / 127;
    *mean = *scale * (static_cast<float>(sum) / kWidestGrain);
}

// x * factor as integers of up to LARGEST; returns their scale.
template <int32_t LARGEST, int COUNT>
inline float quantize_grain_to(const float *x, float factor, int32_t *integers) {
    const float magnitude = largest_magnitude(x, COUNT) * factor;
    const bool is_finite = magnitude <= __FLT_MAX__;
    if (!is_finite || magnitude < 1e-36f) {
        memset(integers, 0, sizeof(int32_t) * COUNT);
        return is_finite ? 0 : __builtin_nanf("");
    }
    const double steps = LARGEST / static_cast<double>(magnitude) * factor;
    for (int i = 0; i < COUNT; ++i) {
        const double value = x[i] * steps;
        integers[i] = static_cast<int32_t>(value + __builtin_copysign(0.5, value));
    }
    return magnitude / LARGEST;
}

// A power of two of about the size of the largest value, 1 if that is nan or inf.
inline float power_below(const float *x, int64_t count) {
    const float magnitude = largest_magnitude(x, count);
    if (!(magnitude <= __FLT_MAX__)) return 1;
    uint32_t bits;
    memcpy(&bits, &magnitude, sizeof(bits));
    bits &= 0x7f800000;
    // Neither it nor its inverse may be subnormal.
    if (bits < 0x00800000) bits = 0x00800000;
    if (bits > 0x7e800000) bits = 0x7e800000;
    float power;
    memcpy(&power, &bits, sizeof(power));
    return power;
}

}  // namespace
