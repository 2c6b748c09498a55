// Vectors of 32 bytes or 8 floats, as the kernels use them. What each function means is written here once for all
// instruction sets.
#pragma once
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

namespace {

struct Avx2 {
    static constexpr int kBytes = 32, kLanes = 8;
    // Rows of x and vectors of rows of w that panel kernels take at once: what 16 registers can hold.
    static constexpr int kInt8Tile = 4, kFloatTile = 6, kPanelVectors = 2;
    using Bytes = __m256i;
    using Floats = __m256;

    static Bytes load_bytes(const uint8_t *p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)); }
    static Floats load(const float *p) { return _mm256_loadu_ps(p); }
    // The first `count` lanes (all if there are fewer), zeros in the others; does not read past them.
    static Floats load_first(const float *p, int64_t count) {
        if (count >= kLanes) return load(p);
        const Bytes lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        return _mm256_maskload_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lanes));
    }
    static void store(float *p, Floats v) { _mm256_storeu_ps(p, v); }
    static Bytes load_aligned(const uint8_t *p) { return _mm256_load_si256(reinterpret_cast<const __m256i *>(p)); }
    static void store_aligned(uint8_t *p, Bytes v) { _mm256_store_si256(reinterpret_cast<__m256i *>(p), v); }
    static Floats zero() { return _mm256_setzero_ps(); }
    static Floats set(float v) { return _mm256_set1_ps(v); }
    static Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
    static Floats multiply(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
    static Floats multiply_add(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }

    // The low (even column) and high (odd column) nibble of each byte.
    static Bytes low_nibbles(Bytes v) { return _mm256_and_si256(v, _mm256_set1_epi8(15)); }
    static Bytes high_nibbles(Bytes v) { return low_nibbles(_mm256_srli_epi16(v, 4)); }

    // Nibble I of 0..3 of each 32-bit lane as a float, times 16^I.
    template <int I>
    static Floats nibble(Bytes v) {
        return _mm256_cvtepi32_ps(_mm256_and_si256(v, _mm256_set1_epi32(15 << (4 * I))));
    }
    static Bytes skip_four_nibbles(Bytes v) { return _mm256_srli_epi32(v, 16); }

    // COUNT adjacent floats, each repeated over an equal share of the lanes.
    template <int COUNT>
    static Floats spread(const float *p) {
        if constexpr (COUNT == 1) return _mm256_broadcast_ss(p);
        if constexpr (COUNT == 2) {
            const __m256d pair = _mm256_broadcast_sd(reinterpret_cast<const double *>(p));
            return _mm256_permutevar_ps(_mm256_castpd_ps(pair), _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1));
        }
        if constexpr (COUNT == 8) return _mm256_loadu_ps(p);
    }

    // The sum of each vector's lanes; the same for a vector wherever it stands.
    template <int COUNT>
    static void lane_sums(const Floats (&v)[COUNT], float *sums) {
        for (int i = 0; i < COUNT; i += 4) {
            const Floats none = zero();
            const __m128 four = four_sums(v[i], i + 1 < COUNT ? v[i + 1] : none, i + 2 < COUNT ? v[i + 2] : none,
                                          i + 3 < COUNT ? v[i + 3] : none);
            float all[4];
            _mm_storeu_ps(all, four);
            for (int j = 0; j < 4 && i + j < COUNT; ++j) sums[i + j] = all[j];
        }
    }

    static __m128 four_sums(Floats a, Floats b, Floats c, Floats d) {
        const __m256 halves = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
        return _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1));
    }

    // Rows and columns of 32-bit lanes exchanged: lane i of vector j becomes lane j of vector i.
    static void transpose(Bytes (&v)[kLanes]) {
        Bytes t[kLanes];
        for (int i = 0; i < 8; i += 2) {
            t[i] = _mm256_unpacklo_epi32(v[i], v[i + 1]);
            t[i + 1] = _mm256_unpackhi_epi32(v[i], v[i + 1]);
        }
        for (int i = 0; i < 8; i += 4) {
            v[i] = _mm256_unpacklo_epi64(t[i], t[i + 2]);
            v[i + 1] = _mm256_unpackhi_epi64(t[i], t[i + 2]);
            v[i + 2] = _mm256_unpacklo_epi64(t[i + 1], t[i + 3]);
            v[i + 3] = _mm256_unpackhi_epi64(t[i + 1], t[i + 3]);
        }
        for (int i = 0; i < 4; ++i) {
            const Bytes low = v[i], high = v[i + 4];
            v[i] = _mm256_permute2x128_si256(low, high, 0x20);
            v[i + 4] = _mm256_permute2x128_si256(low, high, 0x31);
        }
    }

    // Compilers like to collect all products before they add them, for which there are not enough registers.
    static void keep_order(Bytes &sum) { __asm__("" : "+x"(sum)); }

    // Running sums of products of codes, by lane of four bytes; `Partial` may overflow after kPartialTerms of them.
    static constexpr int kPartialTerms = 8;  // 8 * 2 * 15 * 127 < 2^15
    using Partial = __m256i;
    using Sums = __m256i;
    static Bytes four_codes(const int8_t *p) {
        return _mm256_castps_si256(_mm256_broadcast_ss(reinterpret_cast<const float *>(p)));
    }
    static Partial zero_partial() { return _mm256_setzero_si256(); }
    static Partial add_products(Partial sum, Bytes w, Bytes x) {
        sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(w, x));
        keep_order(sum);
        return sum;
    }
    static Sums zero_sums() { return _mm256_setzero_si256(); }
    static Sums add_partial(Sums sum, Partial part) {
        return _mm256_add_epi32(sum, _mm256_madd_epi16(part, _mm256_set1_epi16(1)));
    }
    // 256 * high + low
    static Sums join(Partial high, Partial low) {
        return _mm256_add_epi32(_mm256_madd_epi16(high, _mm256_set1_epi16(256)), add_partial(zero_sums(), low));
    }
    static Floats to_floats(Sums sum) { return _mm256_cvtepi32_ps(sum); }

    // kLanes adjacent nibbles as floats, the low one of the first byte first.
    static Floats load_nibbles(const uint8_t *p) {
        int32_t packed;
        memcpy(&packed, p, sizeof(packed));
        const Bytes shifts = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
        const Bytes shifted = _mm256_srlv_epi32(_mm256_set1_epi32(packed), shifts);
        return _mm256_cvtepi32_ps(_mm256_and_si256(shifted, _mm256_set1_epi32(15)));
    }

    // kLanes halves (float16) as floats.
    static Floats load_halves(const uint16_t *p) {
        return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
    }
};

}  // namespace
