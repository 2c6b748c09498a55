// Scales and zero_points of a row, as floats for each grain of columns.
#pragma once
#include "product_layout.h"

namespace {

template <class Simd>
inline void load_half_scales(const uint16_t *from, int64_t count, float *to) {
    int64_t i = 0;
    for (; i + Simd::kLanes <= count; i += Simd::kLanes) Simd::store(to + i, Simd::load_halves(from + i));
    if (i == count) return;
    uint16_t rest[Simd::kLanes] = {};
    float floats[Simd::kLanes];
    memcpy(rest, from + i, sizeof(uint16_t) * (count - i));
    Simd::store(floats, Simd::load_halves(rest));
    memcpy(to + i, floats, sizeof(float) * (count - i));
}

template <class Simd>
inline void load_scales(const mq_matrix &weight, int64_t first, int64_t count, float *to) {
    if (weight.scale_dtype == MQ_FLOAT32) {
        memcpy(to, static_cast<const float *>(weight.scale) + first, sizeof(float) * count);
        return;
    }
    const uint16_t *from = static_cast<const uint16_t *>(weight.scale) + first;
    if (weight.scale_dtype == MQ_FLOAT16) {
        load_half_scales<Simd>(from, count, to);
        return;
    }
    for (int64_t i = 0; i < count; ++i) {
        const uint32_t bits = static_cast<uint32_t>(from[i]) << 16;  // bfloat16: the upper half of a float
        memcpy(to + i, &bits, sizeof(bits));
    }
}

inline void load_zero_points(const mq_matrix &weight, int64_t first, int64_t count, float *to) {
    if (weight.zero_point == nullptr) {
        for (int64_t g = 0; g < count; ++g) to[g] = 8;
        return;
    }
    int64_t g = 0;
    if (first % 2 != 0) to[g++] = weight.zero_point[first / 2] >> 4;
    const uint8_t *bytes = weight.zero_point + (first + g) / 2;
    for (; g + 2 <= count; g += 2, ++bytes) {
        to[g] = *bytes & 15;
        to[g + 1] = *bytes >> 4;
    }
    if (g < count) to[g] = *bytes & 15;
}

// Repeat the value of each group for its grains, in place, from the last group to the first.
inline void repeat_for_grains(const Layout &layout, float *table) {
    const int64_t times = layout.group_columns / layout.grain;
    for (int64_t g = layout.groups - 1; times > 1 && g >= 0; --g) {
        const float value = table[g];
        const int64_t end = (g + 1) * times < layout.entries ? (g + 1) * times : layout.entries;
        for (int64_t e = end - 1; e >= g * times; --e) table[e] = value;
    }
}

// scale[e] and offset[e] = -zero_point * scale * factor of each grain e of row n; zero in those beyond the last group.
template <class Simd>
inline void row_scales(const mq_matrix &weight, const Layout &layout, int64_t n, float factor, float *scale,
                       float *offset) {
    load_scales<Simd>(weight, n * layout.groups, layout.groups, scale);
    load_zero_points(weight, n * layout.groups, layout.groups, offset);
    for (int64_t g = 0; g < layout.groups; ++g) offset[g] *= -factor * scale[g];
    repeat_for_grains(layout, scale);
    repeat_for_grains(layout, offset);
    const int64_t times = layout.group_columns / layout.grain;
    const int64_t used = layout.groups * times < layout.entries ? layout.groups * times : layout.entries;
    for (int64_t e = used; e < layout.table; ++e) scale[e] = offset[e] = 0;
}

}  // namespace
