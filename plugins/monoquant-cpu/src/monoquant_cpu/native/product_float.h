// Products with float32 activations.
//
// A 32-bit lane of a block holds eight columns, four of which are reached without a shift: nibble I of the lower half
// is q * 16^I, so scale / 16^I turns it into q * scale. One fused multiply-add makes (q - zero_point) * scale of it,
// exactly if the scale is float16 or bfloat16 (zero_point * scale has at most 15 bits).
#pragma once
#include "product_layout.h"

namespace {

template <class Simd, int GRAIN>
struct FloatProduct {
    static constexpr int kBlockColumns = 2 * Simd::kBytes;
    static constexpr int kUnitColumns = GRAIN > kBlockColumns ? GRAIN : kBlockColumns;
    static constexpr int kBlocks = kUnitColumns / kBlockColumns;
    static constexpr int kGrains = kUnitColumns / GRAIN;  // per unit
    static constexpr float kOffsetFactor = 1;
    static constexpr int64_t kChunkColumns = 512;  // of 8 rows of x: half of a first-level cache

    // `count` rows of x together: [blocks, 8 columns of a lane, count, lanes].
    static int64_t bytes_per_row(const Layout &layout) { return sizeof(float) * layout.columns; }

    static void pack(const Layout &layout, const float *x, char *packed, int count, int m) {
        float *to = reinterpret_cast<float *>(packed) + m * Simd::kLanes;
        for (int64_t b = 0; b < layout.columns / kBlockColumns; ++b, x += kBlockColumns) {
            for (int i = 0; i < 8; ++i, to += count * Simd::kLanes) {
                for (int lane = 0; lane < Simd::kLanes; ++lane) to[lane] = x[8 * lane + i];
            }
        }
    }

    struct Steps {
        typename Simd::Floats scale[4], offset;
    };
    static Steps load_steps(const float *scale, const float *offset) {
        Steps steps;
        steps.offset = Simd::template spread<kGrains>(offset);
        steps.scale[0] = Simd::template spread<kGrains>(scale);
        for (int i = 1; i < 4; ++i) steps.scale[i] = Simd::multiply(steps.scale[i - 1], Simd::set(1.0f / 16));
        return steps;
    }

    // Add the lanes of units first .. last - 1 to sum[m * ROWS + n].
    template <int COUNT, int ROWS>
    static void accumulate(const Layout &, const WeightRows<ROWS> &w, char *packed, int64_t first, int64_t last,
                           typename Simd::Floats (&sum)[COUNT * ROWS]) {
        const float *x = reinterpret_cast<const float *>(packed) + first * kUnitColumns * COUNT;
        for (int64_t u = first; u < last; ++u, x += kUnitColumns * COUNT) {
            for (int n = 0; n < ROWS; ++n) {
                const Steps steps = load_steps(w.scale[n] + u * kGrains, w.offset[n] + u * kGrains);
                for (int b = 0; b < kBlocks; ++b) {
                    const auto bytes = Simd::load_bytes(w.codes[n] + (u * kBlocks + b) * Simd::kBytes);
                    const float *columns = x + b * kBlockColumns * COUNT;
                    add_four_columns<COUNT, ROWS>(bytes, steps, columns, sum + n);
                    add_four_columns<COUNT, ROWS>(Simd::skip_four_nibbles(bytes), steps,
                                                  columns + 4 * COUNT * Simd::kLanes, sum + n);
                }
            }
        }
    }

    template <int COUNT, int ROWS>
    static void add_four_columns(typename Simd::Bytes bytes, const Steps &steps, const float *x,
                                 typename Simd::Floats *sum) {
        add_column<0, COUNT, ROWS>(bytes, steps, x, sum);
        add_column<1, COUNT, ROWS>(bytes, steps, x, sum);
        add_column<2, COUNT, ROWS>(bytes, steps, x, sum);
        add_column<3, COUNT, ROWS>(bytes, steps, x, sum);
    }

    template <int I, int COUNT, int ROWS>
    static void add_column(typename Simd::Bytes bytes, const Steps &steps, const float *x,
                           typename Simd::Floats *sum) {
        const auto w = Simd::multiply_add(Simd::template nibble<I>(bytes), steps.scale[I], steps.offset);
        for (int m = 0; m < COUNT; ++m) {
            const auto values = Simd::load(x + (I * COUNT + m) * Simd::kLanes);
            sum[m * ROWS] = Simd::multiply_add(w, values, sum[m * ROWS]);
        }
    }
};

}  // namespace
