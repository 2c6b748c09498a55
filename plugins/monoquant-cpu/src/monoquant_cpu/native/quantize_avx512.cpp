#include <immintrin.h>

#include "quantize.h"
#include "quantize_kernel.h"

namespace {

struct Avx512 {
    struct Block {
        __m512 part[2];
    };

    static Block load(const float *values) { return {{_mm512_loadu_ps(values), _mm512_loadu_ps(values + 16)}}; }

    static __m256i load_16_bits(const void *values, int part) {
        return _mm256_loadu_si256(static_cast<const __m256i *>(values) + part);
    }

    static Block load(const Half *values) {
        return {{_mm512_cvtph_ps(load_16_bits(values, 0)), _mm512_cvtph_ps(load_16_bits(values, 1))}};
    }

    static __m512 widened(__m256i bfloats) {
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bfloats), 16));
    }

    static Block load(const Bfloat *values) {
        return {{widened(load_16_bits(values, 0)), widened(load_16_bits(values, 1))}};
    }

    struct Range {
        __m512 low[2], high[2];

        Range() {
            for (int i = 0; i < 2; ++i) low[i] = high[i] = _mm512_setzero_ps();
        }

        void widen(const Block &block) {
            for (int i = 0; i < 2; ++i) {
                low[i] = _mm512_min_ps(low[i], block.part[i]);
                high[i] = _mm512_max_ps(high[i], block.part[i]);
            }
        }

        void ends(float *least, float *greatest) const {
            *least = _mm512_reduce_min_ps(_mm512_min_ps(low[0], low[1]));
            *greatest = _mm512_reduce_max_ps(_mm512_max_ps(high[0], high[1]));
        }
    };

    struct Steps {
        __m512 step, least, most;  // least and most: the ends of the codes, less the zero point
        __m512i zero_point;

        explicit Steps(const Grid &grid)
            : step(_mm512_set1_ps(grid.step)),
              least(_mm512_set1_ps(static_cast<float>(-grid.zero_point))),
              most(_mm512_set1_ps(static_cast<float>(15 - grid.zero_point))),
              zero_point(_mm512_set1_epi32(grid.zero_point)) {}
    };

    static __m512i rounded(__m512 values, const Steps &steps) {
        return _mm512_cvtps_epi32(_mm512_div_ps(values, steps.step));
    }

    // 16 codes in bytes; the conversion to unsigned bytes stops at 255.
    static __m128i codes_8_bits(__m512 values, const Steps &steps) {
        const __m512i codes = _mm512_add_epi32(rounded(values, steps), steps.zero_point);
        return _mm512_cvtusepi32_epi8(_mm512_max_epi32(codes, _mm512_setzero_si512()));
    }

    static void encode(const Block &block, const Steps &steps, uint8_t *out) {
        const __m128i first = codes_8_bits(block.part[0], steps), second = codes_8_bits(block.part[1], steps);
        const __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(first), second, 1);
        const __m256i codes = _mm256_min_epu8(both, _mm256_set1_epi8(15));
        const __m256i pairs = _mm256_maddubs_epi16(codes, _mm256_set1_epi16(0x1001));
        _mm_storeu_si128(reinterpret_cast<__m128i *>(out), _mm256_cvtepi16_epi8(pairs));
    }

    struct Sums {
        __m512d signal[2], noise[2];

        Sums() {
            for (int i = 0; i < 2; ++i) signal[i] = noise[i] = _mm512_setzero_pd();
        }

        static void add_squares(__m512d sum[2], __m512 values) {
            const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(values));
            const __m512d high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(values, 1));
            sum[0] = _mm512_fmadd_pd(low, low, sum[0]);
            sum[1] = _mm512_fmadd_pd(high, high, sum[1]);
        }

        void add(const Block &block, const Steps &steps) {
            for (int i = 0; i < 2; ++i) {
                const __m512 near = _mm512_cvtepi32_ps(rounded(block.part[i], steps));
                const __m512 code = _mm512_min_ps(_mm512_max_ps(near, steps.least), steps.most);
                add_squares(signal, block.part[i]);
                add_squares(noise, _mm512_sub_ps(block.part[i], _mm512_mul_ps(code, steps.step)));
            }
        }

        void add_to(double *energies) const {
            energies[0] += _mm512_reduce_add_pd(_mm512_add_pd(signal[0], signal[1]));
            energies[1] += _mm512_reduce_add_pd(_mm512_add_pd(noise[0], noise[1]));
        }
    };
};

}  // namespace

void mq::quantize_rows_avx512(const mq_quantize_task *task, int64_t first, int64_t last, double *energies) {
    quantize_rows<Avx512>(*task, first, last, energies);
}
