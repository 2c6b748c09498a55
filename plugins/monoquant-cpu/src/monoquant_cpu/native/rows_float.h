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
    static constexpr int kTile = 2, kRows = kRowsAtOnce;
    static constexpr int64_t kChunkColumns = 2048;  // of a tile of x: half of a first-level cache
    static int tile_at(int64_t left) { return left < kTile ? 1 : kTile; }

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

    // Each row of x takes several sums in turn: a multiply-add waits for the one before it on its sum.
    template <int COUNT>
    static constexpr int kChains = COUNT == 1 ? 4 : 2;

    // Add the lanes of units first .. end - 1 to sum[m * ROWS + n].
    template <int COUNT, int ROWS>
    __attribute__((noinline)) static void accumulate(const Layout &, const WeightRows<ROWS> &w, char *packed,
                                                     int64_t first, int64_t end,
                                                     typename Simd::Floats (&sum)[COUNT * ROWS]) {
        const float *x = reinterpret_cast<const float *>(packed);
        for (int n = 0; n < ROWS; ++n) {
            typename Simd::Floats sums[kChains<COUNT>][COUNT];
            for (int i = 0; i < kChains<COUNT>; ++i) {
                for (int m = 0; m < COUNT; ++m) sums[i][m] = Simd::zero();
            }
            for (int64_t u = first; u < end; ++u) {
                const auto steps = Steps<Simd>::of(Simd::template spread<kGrains>(w.scale[n] + u * kGrains),
                                                   Simd::template spread<kGrains>(w.offset[n] + u * kGrains));
                for (int64_t b = u * kBlocks; b < (u + 1) * kBlocks; ++b) {
                    prefetch(w.codes[n] + b * Simd::kBytes);
                    add_block<COUNT>(Simd::load_bytes(w.codes[n] + b * Simd::kBytes), steps,
                                     x + b * kBlockColumns * COUNT, sums);
                }
            }
            for (int m = 0; m < COUNT; ++m) {
                for (int i = 0; i < kChains<COUNT>; ++i) sum[m * ROWS + n] = Simd::add(sum[m * ROWS + n], sums[i][m]);
            }
        }
    }

    template <int COUNT>
    static void add_block(typename Simd::Bytes codes, const Steps<Simd> &steps, const float *x,
                          typename Simd::Floats (&sums)[kChains<COUNT>][COUNT]) {
        for (int half = 0; half < 2; ++half, x += 4 * COUNT * Simd::kLanes, codes = Simd::skip_four_nibbles(codes)) {
            add_column<0, COUNT>(codes, steps, x, sums);
            add_column<1, COUNT>(codes, steps, x, sums);
            add_column<2, COUNT>(codes, steps, x, sums);
            add_column<3, COUNT>(codes, steps, x, sums);
        }
    }

    template <int I, int COUNT>
    static void add_column(typename Simd::Bytes codes, const Steps<Simd> &steps, const float *x,
                           typename Simd::Floats (&sums)[kChains<COUNT>][COUNT]) {
        const auto w = steps.template dequantize<I>(codes);
        for (int m = 0; m < COUNT; ++m) {
            auto &sum = sums[I % kChains<COUNT>][m];
            sum = Simd::multiply_add(w, Simd::load(x + (I * COUNT + m) * Simd::kLanes), sum);
        }
    }
};

}  // namespace
