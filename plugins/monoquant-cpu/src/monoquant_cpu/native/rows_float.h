// Products of few rows of float32 activations.
//
// A 32-bit lane of a block holds eight columns, four of which are reached without a shift: nibble I of the lower half
// is q * 16^I, so scale / 16^I turns it into q * scale. One fused multiply-add makes (q - zero_point) * scale of it,
// exactly if the scale is float16 or bfloat16 (zero_point * scale has at most 15 bits).
#pragma once
#include "weight_block.h"

namespace {

template <class Simd>
struct Steps {
    using Floats = typename Simd::Floats;
    Floats scale[4], offset;

    static Steps of(Floats scale, Floats offset) {
        const Floats down = Simd::set(1.0f / 16);
        Steps steps = {{scale}, offset};
        for (int i = 1; i < 4; ++i) steps.scale[i] = Simd::multiply(steps.scale[i - 1], down);
        return steps;
    }

    template <int I>
    Floats dequantize(typename Simd::Bytes codes) const {
        return Simd::multiply_add(Simd::template nibble<I>(codes), scale[I], offset);
    }
};

template <class Simd, int GRAIN>
struct RowsFloat {
    static constexpr int kBlockColumns = 2 * Simd::kBytes;
    static constexpr int kUnitColumns = GRAIN > kBlockColumns ? GRAIN : kBlockColumns;
    static constexpr int kBlocks = kUnitColumns / kBlockColumns;
    static constexpr int kGrains = kUnitColumns / GRAIN;  // per unit
    static constexpr float kOffsetFactor = 1;
    static constexpr int kTile = 8, kRows = kRowsAtOnce;
    static constexpr int64_t kChunkColumns = 512;  // of a tile of x: half of a first-level cache
    static int tile_at(int64_t left) { return few_rows_tile(left); }

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

    static int64_t panel_bytes(const Layout &) { return 0; }
    static void prepare(const Layout &, const WeightBlock &, int64_t, int64_t, int64_t, char *) {}

    template <int COUNT>
    static void multiply(const Layout &layout, const WeightBlock &block, int64_t n, char *packed, const char *,
                         int64_t first, int64_t end, float *sums) {
        multiply_rows<RowsFloat, Simd, COUNT>(layout, block, n, packed, first / kUnitColumns, end / kUnitColumns, sums);
    }

    // Add the lanes of units first .. end - 1 to sum[m * ROWS + n].
    template <int COUNT, int ROWS>
    static void accumulate(const Layout &, const WeightRows<ROWS> &w, char *packed, int64_t first, int64_t end,
                           typename Simd::Floats (&sum)[COUNT * ROWS]) {
        const float *x = reinterpret_cast<const float *>(packed) + first * kUnitColumns * COUNT;
        for (int64_t u = first; u < end; ++u, x += kUnitColumns * COUNT) {
            for (int n = 0; n < ROWS; ++n) {
                const auto steps = Steps<Simd>::of(Simd::template spread<kGrains>(w.scale[n] + u * kGrains),
                                                   Simd::template spread<kGrains>(w.offset[n] + u * kGrains));
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
    static void add_four_columns(typename Simd::Bytes bytes, const Steps<Simd> &steps, const float *x,
                                 typename Simd::Floats *sum) {
        add_column<0, COUNT, ROWS>(bytes, steps, x, sum);
        add_column<1, COUNT, ROWS>(bytes, steps, x, sum);
        add_column<2, COUNT, ROWS>(bytes, steps, x, sum);
        add_column<3, COUNT, ROWS>(bytes, steps, x, sum);
    }

    template <int I, int COUNT, int ROWS>
    static void add_column(typename Simd::Bytes bytes, const Steps<Simd> &steps, const float *x,
                           typename Simd::Floats *sum) {
        const auto w = steps.template dequantize<I>(bytes);
        for (int m = 0; m < COUNT; ++m) {
            const auto values = Simd::load(x + (I * COUNT + m) * Simd::kLanes);
            sum[m * ROWS] = Simd::multiply_add(w, values, sum[m * ROWS]);
        }
    }
};

}  // namespace
