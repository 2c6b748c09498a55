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

// Codes and scale of COUNT values. `mean`: scale * sum of the codes / kWidestGrain, which cannot overflow.
template <int COUNT>
inline void quantize_grain(const float *x, int8_t *codes, float *scale, float *mean) {
    uint32_t largest = 0;  // floats without sign are ordered like their bits; inf and nan are the largest
    for (int i = 0; i < COUNT; ++i) {
        uint32_t bits;
        memcpy(&bits, x + i, sizeof(bits));
        bits &= 0x7fffffff;
        largest = bits > largest ? bits : largest;
    }
    float magnitude;
    memcpy(&magnitude, &largest, sizeof(magnitude));
    const bool is_finite = largest < 0x7f800000;
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

}  // namespace
