// Products of many rows of float32 activations: panels of rows of w are dequantized, column by column, and multiplied
// as floats.
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
struct PanelFloat {
    static constexpr int kVectors = Simd::kPanelVectors, kRows = kVectors * Simd::kLanes;
    static constexpr int kTile = Simd::kFloatTile;
    static constexpr int kBlockColumns = 2 * Simd::kBytes;
    static constexpr int kUnitColumns = GRAIN > kBlockColumns ? GRAIN : kBlockColumns;
    static constexpr float kOffsetFactor = 1;
    static constexpr int64_t kChunkColumns = 256;  // of a panel: half of a first-level cache
    static int64_t chunk_columns(int64_t) { return kChunkColumns; }

    static int tile_at(int64_t left) { return even_tile(left, kTile); }

    // `count` rows of x together: [columns, count].
    static int64_t bytes_per_row(const Layout &layout) { return sizeof(float) * layout.columns; }

    static void pack(const Layout &layout, const float *x, char *packed, int count, int m) {
        float *to = reinterpret_cast<float *>(packed) + m;
        for (int64_t column = 0; column < layout.columns; ++column, to += count) *to = x[column];
    }

    // A panel: [columns of a chunk, rows], then scales and offsets [grains, rows].
    static constexpr int64_t kTableFloats = kChunkColumns / GRAIN * kRows;
    static int64_t panel_bytes(const Layout &) { return (kChunkColumns * kRows + 2 * kTableFloats) * sizeof(float); }

    static void prepare(const Layout &layout, const WeightBlock &block, int64_t n, int64_t first, int64_t end,
                        char *panel) {
        float *values = reinterpret_cast<float *>(panel), *scale = values + kChunkColumns * kRows;
        gather_tables<kRows, GRAIN>(block, n, first, end, scale, scale + kTableFloats);
        for (int64_t column = first; column < end; column += kBlockColumns) {
            for (int v = 0; v < kVectors; ++v) {
                const int64_t grain = (column - first) / GRAIN * kRows + v * Simd::kLanes;
                dequantize_block(layout, block, n + v * Simd::kLanes, column, scale + grain,
                                 values + (column - first) * kRows + v * Simd::kLanes);
            }
        }
    }

    static void dequantize_block(const Layout &layout, const WeightBlock &block, int64_t n, int64_t column,
                                 const float *scale, float *to) {
        typename Simd::Bytes codes[Simd::kLanes];
        for (int i = 0; i < Simd::kLanes; ++i) {
            const uint8_t *from = block.codes[block.clamp(n + i)] + column / 2;
            prefetch_rows(layout, from, kRows);
            codes[i] = Simd::load_bytes(from);
        }
        Simd::transpose(codes);
        constexpr int kLanesPerGrain = GRAIN / 8 < Simd::kLanes ? GRAIN / 8 : Simd::kLanes;
        for (int lane = 0; lane < Simd::kLanes; lane += kLanesPerGrain, scale += kRows) {
            const auto steps = Steps<Simd>::of(Simd::load(scale), Simd::load(scale + kTableFloats));
            for (int i = 0; i < kLanesPerGrain; ++i) {
                dequantize_lane(codes[lane + i], steps, to + (lane + i) * 8 * kRows);
            }
        }
    }

    static void dequantize_lane(typename Simd::Bytes codes, const Steps<Simd> &steps, float *to) {
        for (int half = 0; half < 2; ++half, to += 4 * kRows, codes = Simd::skip_four_nibbles(codes)) {
            Simd::store(to, steps.template dequantize<0>(codes));
            Simd::store(to + kRows, steps.template dequantize<1>(codes));
            Simd::store(to + 2 * kRows, steps.template dequantize<2>(codes));
            Simd::store(to + 3 * kRows, steps.template dequantize<3>(codes));
        }
    }

    // Adds columns first .. end - 1 of COUNT rows of x and a panel to sums[m * kRows + n].
    // Not inlined, so that nothing else takes registers.
    template <int COUNT>
    __attribute__((noinline)) static void multiply(const Layout &, const WeightBlock &, int64_t, char *packed,
                                                   const char *panel, int64_t first, int64_t end, float *sums) {
        using Floats = typename Simd::Floats;
        const float *x = reinterpret_cast<const float *>(packed) + first * COUNT;
        const float *w = reinterpret_cast<const float *>(panel);
        Floats total[COUNT][kVectors];
        for (int m = 0; m < COUNT; ++m) {
            for (int v = 0; v < kVectors; ++v) total[m][v] = Simd::zero();
        }
#pragma GCC unroll 4
        for (int64_t column = first; column < end; ++column, x += COUNT, w += kRows) {
            Floats row[kVectors];
            for (int v = 0; v < kVectors; ++v) row[v] = Simd::load(w + v * Simd::kLanes);
            for (int m = 0; m < COUNT; ++m) {
                const Floats value = Simd::set(x[m]);
                for (int v = 0; v < kVectors; ++v) total[m][v] = Simd::multiply_add(row[v], value, total[m][v]);
            }
        }
        add_to_sums<Simd, COUNT>(total, first == 0, sums);
    }
};

}  // namespace
