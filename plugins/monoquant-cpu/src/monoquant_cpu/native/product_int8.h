// Products with activations rounded to 8 bits, one scale per grain and row of x.
//
// With codes q and zero_point z of w, codes c and scale s of x, each grain adds
//     scale * s * sum(q * c)  -  z * scale * s * sum(c)
// The first sum is an exact integer; the second part does not need the codes of w.
#pragma once
#include <string.h>

#include "product_layout.h"

namespace {

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

template <class Simd, int GRAIN>
struct Int8Product {
    static constexpr int kBlockColumns = 2 * Simd::kBytes;
    static constexpr int kUnitColumns = GRAIN > kBlockColumns ? GRAIN : kBlockColumns;
    static constexpr int kBlocks = kUnitColumns / kBlockColumns;
    static constexpr int kGrains = kUnitColumns / GRAIN;  // per unit
    static constexpr float kOffsetFactor = kWidestGrain;
    static constexpr int64_t kChunkColumns = 2048;  // of 8 rows of x: half of a first-level cache

    // `count` rows of x together: codes [units, count, blocks, even and odd, bytes], their scales [units, count, grains]
    // and means [count, table].
    static int64_t bytes_per_row(const Layout &layout) {
        return round_up(layout.columns + sizeof(float) * (layout.entries + layout.table), 64);
    }
    static float *scales(const Layout &layout, char *packed, int count) {
        return reinterpret_cast<float *>(packed + layout.columns * count);
    }
    static float *means(const Layout &layout, char *packed, int count) {
        return scales(layout, packed, count) + layout.entries * count;
    }

    static void pack(const Layout &layout, const float *x, char *packed, int count, int m) {
        float *scale = scales(layout, packed, count), *mean = means(layout, packed, count) + m * layout.table;
        for (int64_t u = 0; u < layout.units; ++u) {
            int8_t codes[kUnitColumns];
            const int64_t place = u * count + m;
            for (int g = 0; g < kGrains; ++g) {
                quantize_grain<GRAIN>(x + u * kUnitColumns + g * GRAIN, codes + g * GRAIN, scale + place * kGrains + g,
                                      mean + u * kGrains + g);
            }
            int8_t *to = reinterpret_cast<int8_t *>(packed) + place * kUnitColumns;
            for (int b = 0; b < kBlocks; ++b, to += kBlockColumns) {
                const int8_t *block = codes + b * kBlockColumns;
                for (int i = 0; i < Simd::kBytes; ++i) to[i] = block[2 * i];
                for (int i = 0; i < Simd::kBytes; ++i) to[Simd::kBytes + i] = block[2 * i + 1];
            }
        }
        for (int64_t e = layout.entries; e < layout.table; ++e) mean[e] = 0;
    }

    // Add the lanes of units first .. last - 1 to sum[m * ROWS + n].
    template <int COUNT, int ROWS>
    static void accumulate(const Layout &layout, const WeightRows<ROWS> &w, char *packed, int64_t first, int64_t last,
                           typename Simd::Floats (&sum)[COUNT * ROWS]) {
        using Floats = typename Simd::Floats;
        if (first == 0) add_offsets<COUNT, ROWS>(layout, w, means(layout, packed, COUNT), sum);
        const float *scale = scales(layout, packed, COUNT) + first * COUNT * kGrains;
        const int8_t *codes = reinterpret_cast<const int8_t *>(packed) + first * COUNT * kUnitColumns;
        for (int64_t u = first; u < last; ++u, scale += COUNT * kGrains, codes += COUNT * kUnitColumns) {
            for (int n = 0; n < ROWS; ++n) {
                typename Simd::Bytes low[kBlocks], high[kBlocks];
                for (int b = 0; b < kBlocks; ++b) {
                    const auto bytes = Simd::load_bytes(w.codes[n] + (u * kBlocks + b) * Simd::kBytes);
                    low[b] = Simd::low_nibbles(bytes);
                    high[b] = Simd::high_nibbles(bytes);
                }
                const Floats step = Simd::template spread<kGrains>(w.scale[n] + u * kGrains);
                for (int m = 0; m < COUNT; ++m) {
                    const Floats x_step = Simd::template spread<kGrains>(scale + m * kGrains);
                    const Floats dot = Simd::template dot<kBlocks>(low, high, codes + m * kUnitColumns);
                    // The scales first: the product of a large x and a small w is moderate, dot * x_step may not be.
                    sum[m * ROWS + n] = Simd::multiply_add(dot, Simd::multiply(step, x_step), sum[m * ROWS + n]);
                }
            }
        }
    }

    template <int COUNT, int ROWS>
    static void add_offsets(const Layout &layout, const WeightRows<ROWS> &w, const float *mean,
                            typename Simd::Floats (&sum)[COUNT * ROWS]) {
        for (int64_t e = 0; e < layout.entries; e += Simd::kLanes) {
            for (int n = 0; n < ROWS; ++n) {
                const auto offset = Simd::load(w.offset[n] + e);
                for (int m = 0; m < COUNT; ++m) {
                    const auto x_mean = Simd::load(mean + m * layout.table + e);
                    sum[m * ROWS + n] = Simd::multiply_add(offset, x_mean, sum[m * ROWS + n]);
                }
            }
        }
    }
};

}  // namespace
