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

template <class Simd>
inline void load_zero_points(const mq_matrix &weight, int64_t first, int64_t count, float *to) {
    if (weight.zero_point == nullptr) {
        for (int64_t i = 0; i < count; ++i) to[i] = 8;
        return;
    }
    int64_t i = 0;
    if (first % 2 != 0) to[i++] = weight.zero_point[first / 2] >> 4;
    const uint8_t *from = weight.zero_point + (first + i) / 2;
    for (; i + Simd::kLanes <= count; i += Simd::kLanes, from += Simd::kLanes / 2) {
        Simd::store(to + i, Simd::load_nibbles(from));
    }
    for (int64_t j = 0; i < count; ++i, ++j) to[i] = from[j / 2] >> (j % 2 * 4) & 15;
}

inline void fill(float *to, const float *end, float value) {
    for (; to < end; ++to) *to = value;
}

// [rows, groups] -> [rows, entries] in place: the value of each group for each of its grains, zeros after the last one.
// From the last to the first, because nothing moves to the front.
inline void repeat_for_grains(const Layout &layout, int64_t rows, float *values) {
    const int64_t times = layout.group_columns / layout.grain, last = layout.groups - 1;
    const int64_t used = layout.groups * times < layout.entries ? layout.groups * times : layout.entries;
    for (int64_t n = rows - 1; n >= 0; --n) {
        float *to = values + n * layout.entries;
        const float *from = values + n * layout.groups;
        const float last_value = from[last];
        fill(to + used, to + layout.entries, 0);
        fill(to + last * times, to + used, last_value);
        for (int64_t g = last - 1; g >= 0; --g) {
            const float value = from[g];
            float *grain = to + g * times;
            grain[0] = value;
            if (times == 2) grain[1] = value;
            if (times > 2) fill(grain + 1, grain + times, value);
        }
    }
}

// [rows, entries]: the scale of each grain, and offset = -zero_point * scale * factor, or zero_point itself if the
// factor is 0; zeros past the last group.
template <class Simd>
inline void load_tables(const mq_matrix &weight, const Layout &layout, int64_t first, int64_t rows, float factor,
                        float *scale, float *offset) {
    const int64_t count = rows * layout.groups;
    load_scales<Simd>(weight, first * layout.groups, count, scale);
    load_zero_points<Simd>(weight, first * layout.groups, count, offset);
    if (factor != 0) {
        for (int64_t i = 0; i < count; ++i) offset[i] *= -factor * scale[i];
    }
    if (layout.entries == layout.groups) return;
    repeat_for_grains(layout, rows, scale);
    repeat_for_grains(layout, rows, offset);
}

}  // namespace
