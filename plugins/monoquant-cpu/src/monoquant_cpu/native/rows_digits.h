// Products of few rows of x, written as integers with one scale per grain: the codes of w are used as they are read.
//
// With one digit, x is rounded to 8 bits. With three, to 24 bits: x = scale * (d0 * 256^2 + d1 * 256 + d2), as exact as
// float32, and the product is that of three rows of 8 bits: for few rows, that is faster than unpacking w to floats.
//
// With codes q and zero_point z of w, integers c and scale s of x, each grain adds
//     scale * s * (sum(q * c) - z * sum(c))
// The first sum is exact. The second one is subtracted lane by lane before any rounding: where all x have the same
// sign, both are much larger than their difference.
#pragma once
#include "activations.h"
#include "weight_block.h"

namespace {

template <class Simd, int GRAIN, int DIGITS>
struct RowsDigits {
    using Bytes = typename Simd::Bytes;
    using Floats = typename Simd::Floats;
    using Partial = typename Simd::Partial;
    static constexpr bool kExact = DIGITS == 3;
    static constexpr int kBlockColumns = 2 * Simd::kBytes;
    static constexpr int kUnitColumns = GRAIN > kBlockColumns ? GRAIN : kBlockColumns;
    static constexpr int kBlocks = kUnitColumns / kBlockColumns;
    static constexpr int kGrains = kUnitColumns / GRAIN;  // per unit
    static_assert(2 * kBlocks <= Simd::kPartialTerms, "a partial sum takes a unit");
    static constexpr float kOffsetFactor = 0;
    static constexpr int kTile = 4, kRows = 16;
    static constexpr int32_t kLargest = kExact ? 0x7f7f7f : 0x7f;  // all digits are 127

    static int tile_at(int64_t left) { return even_tile(left, kTile); }

    // A tile of x takes half of a first-level cache.
    static int64_t chunk_columns(int64_t count) {
        const int64_t bytes = (kExact ? 4 : 1) * (count < kTile ? count : kTile);
        return 16384 / bytes / kWidestGrain * kWidestGrain;
    }

    // `count` rows of x together: digits [units, count, blocks, even and odd, digits, bytes], scales [units, count,
    // grains], minus the sums of the lanes [units, count, lanes], and a power of two that each row is divided by.
    struct Tile {
        int8_t *codes;
        float *scale, *sums, *power;

        Tile(const Layout &layout, char *packed, int count) {
            codes = reinterpret_cast<int8_t *>(packed);
            scale = reinterpret_cast<float *>(packed + DIGITS * layout.columns * count);
            sums = scale + layout.entries * count;
            power = sums + layout.units * Simd::kLanes * count;
        }
    };

    static int64_t bytes_per_row(const Layout &layout) {
        const int64_t floats = layout.entries + layout.units * Simd::kLanes + 1;
        return round_up(DIGITS * layout.columns + sizeof(float) * floats, 64);
    }

    static void pack(const Layout &layout, const float *x, char *packed, int count, int m) {
        const Tile tile(layout, packed, count);
        const float power = kExact ? power_below(x, layout.columns) : 1;
        tile.power[m] = power;
        for (int64_t u = 0; u < layout.units; ++u, x += kUnitColumns) {
            const int64_t place = u * count + m;
            int32_t integers[kUnitColumns];
            for (int g = 0; g < kGrains; ++g) {
                tile.scale[place * kGrains + g] =
                    quantize_grain_to<kLargest, GRAIN>(x + g * GRAIN, 1 / power, integers + g * GRAIN);
            }
            add_lanes(integers, tile.sums + place * Simd::kLanes);
            arrange(integers, tile.codes + place * DIGITS * kUnitColumns);
        }
    }

    // The sum of high digits meets a vector that is 256 times smaller than x.
    static void add_lanes(const int32_t (&integers)[kUnitColumns], float *sums) {
        for (int lane = 0; lane < Simd::kLanes; ++lane) {
            int32_t sum = 0;
            for (int b = 0; b < kUnitColumns; b += kBlockColumns) {
                for (int i = 0; i < 8; ++i) sum += integers[b + 8 * lane + i];
            }
            sums[lane] = static_cast<float>(-sum) / (kExact ? 256 : 1);
        }
    }

    static void arrange(int32_t (&integers)[kUnitColumns], int8_t *to) {
        for (int d = DIGITS - 1; d >= 0; --d) {
            int8_t digits[kUnitColumns];
            for (int i = 0; i < kUnitColumns; ++i) {
                digits[i] = static_cast<int8_t>(integers[i]);
                integers[i] = (integers[i] + 128) >> 8;
            }
            for (int half = 0; half < 2 * kBlocks; ++half) {
                const int8_t *from = digits + half / 2 * kBlockColumns + half % 2;
                int8_t *half_to = to + (half * DIGITS + d) * Simd::kBytes;
                for (int i = 0; i < Simd::kBytes; ++i) half_to[i] = from[2 * i];
            }
        }
    }

    static int64_t panel_bytes(const Layout &) { return 0; }
    static void prepare(const Layout &, const WeightBlock &, int64_t, int64_t, int64_t, char *) {}

    // Add columns first .. end - 1 to sums[m * kRows + n] (set it if they are the first).
    // Not inlined, so that nothing else takes registers.
    template <int COUNT>
    __attribute__((noinline)) static void multiply(const Layout &layout, const WeightBlock &block, int64_t n,
                                                   char *packed, const char *, int64_t first, int64_t end,
                                                   float *sums) {
        constexpr int ROWS = COUNT == 1 && !kExact ? 4 : 2;
        const Tile x(layout, packed, COUNT);
        Floats total[COUNT][kRows];
        const int64_t left = round_up(block.rows - n, 4), rows = left < kRows ? left : kRows;
        for (int64_t row = 0; row < rows; row += ROWS) {
            const auto w = WeightRows<ROWS>::of(block, n + row);
            Floats sum[COUNT][ROWS];
            for (int m = 0; m < COUNT; ++m) {
                for (int i = 0; i < ROWS; ++i) sum[m][i] = Simd::zero();
            }
            for (int64_t u = first / kUnitColumns; u < end / kUnitColumns; ++u) add_unit(w, x, u, sum);
            for (int m = 0; m < COUNT; ++m) {
                for (int i = 0; i < ROWS; ++i) total[m][row + i] = sum[m][i];
            }
        }
        for (int m = 0; m < COUNT; ++m) finish(total[m], rows, x.power[m], first == 0, sums + m * kRows);
    }

    // Sums of lanes, four vectors at a time.
    static void finish(const Floats (&total)[kRows], int64_t rows, float power, bool is_first, float *sums) {
        for (int64_t row = 0; row < rows; row += 4) {
            const Floats four[4] = {total[row], total[row + 1], total[row + 2], total[row + 3]};
            float lanes[4];
            Simd::lane_sums(four, lanes);
            for (int n = 0; n < 4; ++n) sums[row + n] = lanes[n] * power + (is_first ? 0 : sums[row + n]);
        }
    }

    // For one row of x, codes are unpacked where they are needed, for several before.
    template <int ROWS>
    static void add_unit(const WeightRows<ROWS> &w, const Tile &x, int64_t u, Floats (&total)[1][ROWS]) {
        Partial sum[DIGITS][ROWS];
        clear(sum);
        const int8_t *digits = x.codes + u * DIGITS * kUnitColumns;
        for (int b = 0; b < kBlocks; ++b, digits += 2 * DIGITS * Simd::kBytes) {
            Bytes low[ROWS], high[ROWS];
            for (int n = 0; n < ROWS; ++n) {
                const uint8_t *codes = w.codes[n] + (u * kBlocks + b) * Simd::kBytes;
                if (b == 0) prefetch(codes);
                high[n] = Simd::load_bytes(codes);
                low[n] = Simd::low_nibbles(high[n]);
            }
            add_products(low, digits, sum);
            for (int n = 0; n < ROWS; ++n) high[n] = Simd::high_nibbles(high[n]);
            add_products(high, digits + DIGITS * Simd::kBytes, sum);
        }
        add_scaled(w, u, sum, x.scale + u * kGrains, x.sums + u * Simd::kLanes, total[0]);
    }

    template <int COUNT, int ROWS>
    static void add_unit(const WeightRows<ROWS> &w, const Tile &x, int64_t u, Floats (&total)[COUNT][ROWS]) {
        Bytes codes[2 * kBlocks][ROWS];
        for (int b = 0; b < kBlocks; ++b) {
            for (int n = 0; n < ROWS; ++n) {
                const uint8_t *from = w.codes[n] + (u * kBlocks + b) * Simd::kBytes;
                if (b == 0) prefetch(from);
                const Bytes both = Simd::load_bytes(from);
                codes[2 * b][n] = Simd::low_nibbles(both);
                codes[2 * b + 1][n] = Simd::high_nibbles(both);
            }
        }
        const int8_t *digits = x.codes + u * COUNT * DIGITS * kUnitColumns;
        const float *scale = x.scale + u * COUNT * kGrains, *lane_sums = x.sums + u * COUNT * Simd::kLanes;
        for (int m = 0; m < COUNT; ++m, scale += kGrains, lane_sums += Simd::kLanes) {
            Partial sum[DIGITS][ROWS];
            clear(sum);
            for (int half = 0; half < 2 * kBlocks; ++half, digits += DIGITS * Simd::kBytes) {
                add_products(codes[half], digits, sum);
            }
            add_scaled(w, u, sum, scale, lane_sums, total[m]);
        }
    }

    template <int ROWS>
    static void clear(Partial (&sum)[DIGITS][ROWS]) {
        for (int d = 0; d < DIGITS; ++d) {
            for (int n = 0; n < ROWS; ++n) sum[d][n] = Simd::zero_partial();
        }
    }

    template <int ROWS>
    static void add_products(const Bytes (&codes)[ROWS], const int8_t *digits, Partial (&sum)[DIGITS][ROWS]) {
        for (int d = 0; d < DIGITS; ++d) {
            const Bytes x = Simd::load_aligned(reinterpret_cast<const uint8_t *>(digits + d * Simd::kBytes));
            for (int n = 0; n < ROWS; ++n) sum[d][n] = Simd::add_products(sum[d][n], codes[n], x);
        }
    }

    template <int ROWS>
    static void add_scaled(const WeightRows<ROWS> &w, int64_t u, const Partial (&sum)[DIGITS][ROWS], const float *scale,
                           const float *lane_sums, Floats (&total)[ROWS]) {
        const Floats x_step = Simd::template spread<kGrains>(scale), x_sums = Simd::load(lane_sums);
        for (int n = 0; n < ROWS; ++n) {
            const Floats zero_point = Simd::template spread<kGrains>(w.offset[n] + u * kGrains);
            Floats dot = Simd::to_floats(Simd::add_partial(Simd::zero_sums(), sum[DIGITS - 1][n]));
            if constexpr (kExact) {
                Floats high = Simd::to_floats(Simd::join(sum[0][n], sum[1][n]));  // below 2^24: exact
                high = Simd::multiply_add(zero_point, x_sums, high);
                dot = Simd::multiply_add(high, Simd::set(256), dot);
            } else {
                dot = Simd::multiply_add(zero_point, x_sums, dot);
            }
            // The scales first: the product of a large x and a small w is moderate, dot * x_step may not be.
            const Floats step = Simd::multiply(Simd::template spread<kGrains>(w.scale[n] + u * kGrains), x_step);
            total[n] = Simd::multiply_add(dot, step, total[n]);
        }
    }
};

template <class Simd, int GRAIN>
using RowsInt8 = RowsDigits<Simd, GRAIN, 1>;

template <class Simd, int GRAIN>
using RowsFloat = RowsDigits<Simd, GRAIN, 3>;

}  // namespace
