// Products of many rows of x, rounded to 8 bits with one scale per grain.
//
// A panel holds some rows of w side by side: each vector has four codes of each of its rows, so that sums of different
// rows need no adding up across lanes and scales are vectors too. Unpacking it pays off from a few rows of x on.
#pragma once
#include "activations.h"
#include "weight_block.h"

namespace {

template <class Simd, int GRAIN>
struct PanelInt8 {
    static constexpr int kVectors = Simd::kPanelVectors, kRows = kVectors * Simd::kLanes;
    static constexpr int kTile = Simd::kInt8Tile;
    static constexpr int kBlockColumns = 2 * Simd::kBytes;
    static constexpr int kStepBytes = 2 * kVectors * Simd::kBytes;  // of the 8 columns of a lane, for all rows
    static constexpr int kUnitColumns = GRAIN > kBlockColumns ? GRAIN : kBlockColumns;
    static constexpr float kOffsetFactor = kWidestGrain;
    static constexpr int64_t kChunkColumns = 1024;  // of a panel: half of a first-level cache
    static int64_t chunk_columns(int64_t) { return kChunkColumns; }

    static int tile_at(int64_t left) { return even_tile(left, kTile); }

    // `count` rows of x together: codes [lanes of columns, count, 4 even and 4 odd ones], scales and means
    // [entries, count].
    static int64_t bytes_per_row(const Layout &layout) {
        return round_up(layout.columns + 2 * sizeof(float) * layout.entries, 64);
    }

    static void pack(const Layout &layout, const float *x, char *packed, int count, int m) {
        float *scale = reinterpret_cast<float *>(packed + layout.columns * count);
        float *mean = scale + layout.entries * count;
        int8_t *to = reinterpret_cast<int8_t *>(packed) + 8 * m;
        for (int64_t e = 0; e < layout.entries; ++e, x += GRAIN) {
            int8_t codes[GRAIN];
            quantize_grain<GRAIN>(x, codes, scale + e * count + m, mean + e * count + m);
            for (int lane = 0; lane < GRAIN; lane += 8, to += 8 * count) {
                int8_t eight[8];
                for (int i = 0; i < 8; ++i) eight[i] = codes[lane + i % 4 * 2 + i / 4];
                memcpy(to, eight, 8);
            }
        }
    }

    // A panel: codes of a chunk [lanes of columns, even and odd, vectors], then scales and offsets [entries, rows].
    static int64_t panel_bytes(const Layout &) { return kChunkColumns * kRows + table_floats() * 2 * sizeof(float); }
    static constexpr int64_t table_floats() { return kChunkColumns / GRAIN * kRows; }

    static void prepare(const Layout &layout, const WeightBlock &block, int64_t n, int64_t first, int64_t end,
                        char *panel) {
        for (int64_t column = first; column < end; column += kBlockColumns) {
            uint8_t *to = reinterpret_cast<uint8_t *>(panel) + (column - first) / 8 * kStepBytes;
            for (int v = 0; v < kVectors; ++v) {
                typename Simd::Bytes codes[Simd::kLanes];
                for (int lane = 0; lane < Simd::kLanes; ++lane) {
                    const uint8_t *from = block.codes[block.clamp(n + v * Simd::kLanes + lane)] + column / 2;
                    prefetch_rows(layout, from, kRows);
                    codes[lane] = Simd::load_bytes(from);
                }
                Simd::transpose(codes);
                for (int lane = 0; lane < Simd::kLanes; ++lane) {
                    uint8_t *step = to + lane * kStepBytes + v * Simd::kBytes;
                    Simd::store_aligned(step, Simd::low_nibbles(codes[lane]));
                    Simd::store_aligned(step + kStepBytes / 2, Simd::high_nibbles(codes[lane]));
                }
            }
        }
        float *scale = reinterpret_cast<float *>(panel + kChunkColumns * kRows);
        gather_tables<kRows, GRAIN>(block, n, first, end, scale, scale + table_floats());
    }

    // Adds columns first .. end - 1 of COUNT rows of x and a panel to sums[m * kRows + n].
    // Not inlined, so that nothing else takes registers.
    template <int COUNT>
    __attribute__((noinline)) static void multiply(const Layout &layout, const WeightBlock &, int64_t, char *packed,
                                                   const char *panel, int64_t first, int64_t end, float *sums) {
        using Floats = typename Simd::Floats;
        const int8_t *x = reinterpret_cast<const int8_t *>(packed) + first * COUNT;
        const float *x_scale = reinterpret_cast<const float *>(packed + layout.columns * COUNT) + first / GRAIN * COUNT;
        const float *x_mean = x_scale + layout.entries * COUNT;
        const uint8_t *w = reinterpret_cast<const uint8_t *>(panel);
        const float *scale = reinterpret_cast<const float *>(panel + kChunkColumns * kRows);
        const float *offset = scale + table_floats();
        Floats total[COUNT][kVectors];
        for (int m = 0; m < COUNT; ++m) {
            for (int v = 0; v < kVectors; ++v) total[m][v] = Simd::zero();
        }
        for (int64_t e = 0; e < (end - first) / GRAIN; ++e) {
            Floats dot[COUNT][kVectors];
            multiply_grain<COUNT>(w, x, dot);
            w += GRAIN / 8 * kStepBytes;
            x += GRAIN * COUNT;
            for (int v = 0; v < kVectors; ++v) {
                const Floats w_scale = Simd::load(scale + e * kRows + v * Simd::kLanes);
                const Floats w_offset = Simd::load(offset + e * kRows + v * Simd::kLanes);
                for (int m = 0; m < COUNT; ++m) {
                    // The scales first: the product of a large x and a small w is moderate, dot * x_scale may not be.
                    const Floats step = Simd::multiply(w_scale, Simd::set(x_scale[e * COUNT + m]));
                    total[m][v] = Simd::multiply_add(dot[m][v], step, total[m][v]);
                    total[m][v] = Simd::multiply_add(w_offset, Simd::set(x_mean[e * COUNT + m]), total[m][v]);
                }
            }
        }
        add_to_sums<Simd, COUNT>(total, first == 0, sums);
    }

    // dot[m][v]: the sums of products of codes of one grain.
    template <int COUNT>
    static void multiply_grain(const uint8_t *w, const int8_t *x, typename Simd::Floats (&dot)[COUNT][kVectors]) {
        constexpr int kHalves = GRAIN / 4;  // even or odd codes of a lane
        constexpr int kTerms = kHalves < Simd::kPartialTerms ? kHalves : Simd::kPartialTerms;
        typename Simd::Sums sum[COUNT][kVectors];
        for (int m = 0; m < COUNT; ++m) {
            for (int v = 0; v < kVectors; ++v) sum[m][v] = Simd::zero_sums();
        }
        for (int part = 0; part < kHalves; part += kTerms) {
            typename Simd::Partial partial[COUNT][kVectors];
            for (int m = 0; m < COUNT; ++m) {
                for (int v = 0; v < kVectors; ++v) partial[m][v] = Simd::zero_partial();
            }
#pragma GCC unroll 8
            for (int i = 0; i < kTerms; ++i) {
                typename Simd::Bytes codes[kVectors];
                for (int v = 0; v < kVectors; ++v) codes[v] = Simd::load_aligned(w + v * Simd::kBytes);
                w += kStepBytes / 2;
                for (int m = 0; m < COUNT; ++m) {
                    const auto x_codes = Simd::four_codes(x + i / 2 * 8 * COUNT + 8 * m + i % 2 * 4);
                    for (int v = 0; v < kVectors; ++v) {
                        partial[m][v] = Simd::add_products(partial[m][v], codes[v], x_codes);
                    }
                }
            }
            x += kTerms * 4 * COUNT;
            for (int m = 0; m < COUNT; ++m) {
                for (int v = 0; v < kVectors; ++v) sum[m][v] = Simd::add_partial(sum[m][v], partial[m][v]);
            }
        }
        for (int m = 0; m < COUNT; ++m) {
            for (int v = 0; v < kVectors; ++v) dot[m][v] = Simd::to_floats(sum[m][v]);
        }
    }
};

}  // namespace
