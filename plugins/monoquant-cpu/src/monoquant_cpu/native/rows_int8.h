// Products of few rows of x, rounded to 8 bits with one scale per grain: the codes of w are used as they are read.
//
// With codes q and zero_point z of w, codes c and scale s of x, each grain adds
//     scale * s * sum(q * c)  -  z * scale * s * sum(c)
// The first sum is an exact integer; the second part does not need the codes of w.
#pragma once
#include "activations.h"
#include "weight_block.h"

namespace {

template <class Simd, int GRAIN>
struct RowsInt8 {
    static constexpr int kBlockColumns = 2 * Simd::kBytes;
    static constexpr int kUnitColumns = GRAIN > kBlockColumns ? GRAIN : kBlockColumns;
    static constexpr int kBlocks = kUnitColumns / kBlockColumns;
    static constexpr int kGrains = kUnitColumns / GRAIN;  // per unit
    static constexpr float kOffsetFactor = kWidestGrain;
    static constexpr int kTile = 2, kRows = kRowsAtOnce;
    static constexpr int64_t kChunkColumns = 8192;  // of a tile of x: half of a first-level cache
    static int tile_at(int64_t left) { return left < kTile ? 1 : kTile; }

    // `count` rows of x together: codes [units, count, blocks, even and odd, bytes], scales [units, count, grains] and
    // means [count, entries].
    static int64_t bytes_per_row(const Layout &layout) {
        return round_up(layout.columns + 2 * sizeof(float) * layout.entries, 64);
    }
    static float *scales(const Layout &layout, char *packed, int count) {
        return reinterpret_cast<float *>(packed + layout.columns * count);
    }
    static float *means(const Layout &layout, char *packed, int count) {
        return scales(layout, packed, count) + layout.entries * count;
    }

    static void pack(const Layout &layout, const float *x, char *packed, int count, int m) {
        float *scale = scales(layout, packed, count), *mean = means(layout, packed, count) + m * layout.entries;
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
    }

    static int64_t panel_bytes(const Layout &) { return 0; }
    static void prepare(const Layout &, const WeightBlock &, int64_t, int64_t, int64_t, char *) {}

    template <int COUNT>
    static void multiply(const Layout &layout, const WeightBlock &block, int64_t n, char *packed, const char *,
                         int64_t first, int64_t end, float *sums) {
        multiply_rows<RowsInt8, Simd, COUNT>(layout, block, n, packed, first / kUnitColumns, end / kUnitColumns, sums);
    }

    // Add the lanes of units first .. end - 1 to sum[m * ROWS + n].
    template <int COUNT, int ROWS>
    __attribute__((noinline)) static void accumulate(const Layout &layout, const WeightRows<ROWS> &w, char *packed,
                                                     int64_t first, int64_t end,
                                                     typename Simd::Floats (&sum)[COUNT * ROWS]) {
        const float *scale = scales(layout, packed, COUNT), *mean = means(layout, packed, COUNT);
        const int8_t *codes = reinterpret_cast<const int8_t *>(packed);
        typename Simd::Floats sums[ROWS][COUNT];
        for (int n = 0; n < ROWS; ++n) {
            for (int m = 0; m < COUNT; ++m) sums[n][m] = Simd::zero();
            if (first == 0) add_offsets<COUNT>(layout.entries, w.offset[n], mean, sums[n]);
        }
        for (int64_t u = first; u < end; ++u) {
#pragma GCC unroll 4
            for (int n = 0; n < ROWS; ++n) {
                add_unit<COUNT>(w.codes[n] + u * kBlocks * Simd::kBytes, w.scale[n] + u * kGrains,
                                codes + u * kUnitColumns * COUNT, scale + u * kGrains * COUNT, sums[n]);
            }
        }
        for (int n = 0; n < ROWS; ++n) {
            for (int m = 0; m < COUNT; ++m) sum[m * ROWS + n] = sums[n][m];
        }
    }

    template <int COUNT>
    static void add_unit(const uint8_t *codes, const float *scale, const int8_t *x, const float *x_scale,
                         typename Simd::Floats (&sums)[COUNT]) {
        prefetch(codes);
        typename Simd::Bytes low[kBlocks], high[kBlocks];
        for (int b = 0; b < kBlocks; ++b) {
            const auto bytes = Simd::load_bytes(codes + b * Simd::kBytes);
            low[b] = Simd::low_nibbles(bytes);
            high[b] = Simd::high_nibbles(bytes);
        }
        const auto step = Simd::template spread<kGrains>(scale);
        for (int m = 0; m < COUNT; ++m) {
            const auto x_step = Simd::template spread<kGrains>(x_scale + m * kGrains);
            const auto dot = Simd::template dot<kBlocks>(low, high, x + m * kUnitColumns);
            // The scales first: the product of a large x and a small w is moderate, dot * x_step may not be.
            sums[m] = Simd::multiply_add(dot, Simd::multiply(step, x_step), sums[m]);
        }
    }

    template <int COUNT>
    static void add_offsets(int64_t entries, const float *offset, const float *mean,
                            typename Simd::Floats (&sums)[COUNT]) {
        for (int64_t e = 0; e < entries; e += Simd::kLanes) {
            const auto w_offset = Simd::load_first(offset + e, entries - e);
            for (int m = 0; m < COUNT; ++m) {
                sums[m] = Simd::multiply_add(w_offset, Simd::load_first(mean + m * entries + e, entries - e), sums[m]);
            }
        }
    }
};

}  // namespace
