#include <immintrin.h>

#include "quantize.h"
#include "quantize_kernel.h"

namespace {

struct Avx2 {
    struct Block {
        __m256 part[4];
    };

    static Block load(const float *values) {
        return {{_mm256_loadu_ps(values), _mm256_loadu_ps(values + 8), _mm256_loadu_ps(values + 16),
                 _mm256_loadu_ps(values + 24)}};
    }

    static __m128i load_16_bits(const void *values, int part) {
        return _mm_loadu_si128(static_cast<const __m128i *>(values) + part);
    }

    static Block load(const Half *values) {
        return {{_mm256_cvtph_ps(load_16_bits(values, 0)), _mm256_cvtph_ps(load_16_bits(values, 1)),
                 _mm256_cvtph_ps(load_16_bits(values, 2)), _mm256_cvtph_ps(load_16_bits(values, 3))}};
    }

    static __m256 widened(__m128i bfloats) {
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bfloats), 16));
    }

    static Block load(const Bfloat *values) {
        return {{widened(load_16_bits(values, 0)), widened(load_16_bits(values, 1)), widened(load_16_bits(values, 2)),
                 widened(load_16_bits(values, 3))}};
    }

    struct Range {
        __m256 low[4], high[4];

        Range() {
            for (int i = 0; i < 4; ++i) low[i] = high[i] = _mm256_setzero_ps();
        }

        void widen(const Block &block) {
            for (int i = 0; i < 4; ++i) {
                low[i] = _mm256_min_ps(low[i], block.part[i]);
                high[i] = _mm256_max_ps(high[i], block.part[i]);
            }
        }

        void ends(float *least, float *greatest) const {
            const __m256 lows = _mm256_min_ps(_mm256_min_ps(low[0], low[1]), _mm256_min_ps(low[2], low[3]));
            const __m256 highs = _mm256_max_ps(_mm256_max_ps(high[0], high[1]), _mm256_max_ps(high[2], high[3]));
            __m128 l = _mm_min_ps(_mm256_castps256_ps128(lows), _mm256_extractf128_ps(lows, 1));
            __m128 h = _mm_max_ps(_mm256_castps256_ps128(highs), _mm256_extractf128_ps(highs, 1));
            l = _mm_min_ps(l, _mm_movehl_ps(l, l));
            h = _mm_max_ps(h, _mm_movehl_ps(h, h));
            *least = _mm_cvtss_f32(_mm_min_ss(l, _mm_movehdup_ps(l)));
            *greatest = _mm_cvtss_f32(_mm_max_ss(h, _mm_movehdup_ps(h)));
        }
    };

    struct Steps {
        __m256 step, least, most;  // least and most: the ends of the codes, less the zero point
        __m256i zero_point;

        explicit Steps(const Grid &grid)
            : step(_mm256_set1_ps(grid.step)),
              least(_mm256_set1_ps(static_cast<float>(-grid.zero_point))),
              most(_mm256_set1_ps(static_cast<float>(15 - grid.zero_point))),
              zero_point(_mm256_set1_epi16(static_cast<int16_t>(grid.zero_point))) {}
    };

    static __m256i rounded(__m256 values, const Steps &steps) {
        return _mm256_cvtps_epi32(_mm256_div_ps(values, steps.step));
    }

    static __m256i codes_16_bits(__m256 left, __m256 right, const Steps &steps) {
        const __m256i both = _mm256_packs_epi32(rounded(left, steps), rounded(right, steps));
        return _mm256_add_epi16(both, steps.zero_point);
    }

    static void encode(const Block &block, const Steps &steps, uint8_t *out) {
        const __m256i first = codes_16_bits(block.part[0], block.part[1], steps);
        const __m256i second = codes_16_bits(block.part[2], block.part[3], steps);
        // packus stops at 0. Each 128-bit lane holds 4 codes of each of the 4 parts.
        const __m256i codes = _mm256_min_epu8(_mm256_packus_epi16(first, second), _mm256_set1_epi8(15));
        const __m256i pairs = _mm256_maddubs_epi16(codes, _mm256_set1_epi16(0x1001));
        const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
        const __m128i ordered = _mm_unpacklo_epi16(bytes, _mm_unpackhi_epi64(bytes, bytes));
        _mm_storeu_si128(reinterpret_cast<__m128i *>(out), ordered);
    }

    struct Sums {
        __m256d signal[2], noise[2];

        Sums() {
            for (int i = 0; i < 2; ++i) signal[i] = noise[i] = _mm256_setzero_pd();
        }

        static void add_squares(__m256d sum[2], __m256 values) {
            const __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(values));
            const __m256d high = _mm256_cvtps_pd(_mm256_extractf128_ps(values, 1));
            sum[0] = _mm256_fmadd_pd(low, low, sum[0]);
            sum[1] = _mm256_fmadd_pd(high, high, sum[1]);
        }

        void add(const Block &block, const Steps &steps) {
            for (int i = 0; i < 4; ++i) {
                const __m256 near = _mm256_cvtepi32_ps(rounded(block.part[i], steps));
                const __m256 code = _mm256_min_ps(_mm256_max_ps(near, steps.least), steps.most);
                add_squares(signal, block.part[i]);
                add_squares(noise, _mm256_sub_ps(block.part[i], _mm256_mul_ps(code, steps.step)));
            }
        }

        static double total(const __m256d sum[2]) {
            const __m256d both = _mm256_add_pd(sum[0], sum[1]);
            const __m128d half = _mm_add_pd(_mm256_castpd256_pd128(both), _mm256_extractf128_pd(both, 1));
            return _mm_cvtsd_f64(_mm_add_sd(half, _mm_unpackhi_pd(half, half)));
        }

        void add_to(double *energies) const {
            energies[0] += total(signal);
            energies[1] += total(noise);
        }
    };
};

}  // namespace

void mq::quantize_rows_avx2(const mq_quantize_task *task, int64_t first, int64_t last, double *energies) {
    quantize_rows<Avx2>(*task, first, last, energies);
}
