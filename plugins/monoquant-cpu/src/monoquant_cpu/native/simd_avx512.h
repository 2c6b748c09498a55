// Vectors of 64 bytes or 16 floats; simd_avx2.h tells what the functions mean.
#pragma once
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // in the compiler's own headers
#endif

namespace {

struct Avx512 {
    static constexpr int kBytes = 64, kLanes = 16;
    static constexpr int kInt8Tile = 8, kFloatTile = 12, kPanelVectors = 2;
    using Bytes = __m512i;
    using Floats = __m512;

    static Bytes load_bytes(const uint8_t *p) { return _mm512_loadu_si512(p); }
    static Floats load(const float *p) { return _mm512_loadu_ps(p); }
    static Floats load_first(const float *p, int64_t count) {
        if (count >= kLanes) return load(p);
        return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), p);
    }
    static void store(float *p, Floats v) { _mm512_storeu_ps(p, v); }
    static Bytes load_aligned(const uint8_t *p) { return _mm512_load_si512(p); }
    static void store_aligned(uint8_t *p, Bytes v) { _mm512_store_si512(p, v); }
    static Floats zero() { return _mm512_setzero_ps(); }
    static Floats set(float v) { return _mm512_set1_ps(v); }
    static Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
    static Floats multiply(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
    static Floats multiply_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }

    static Bytes low_nibbles(Bytes v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
    static Bytes high_nibbles(Bytes v) { return low_nibbles(_mm512_srli_epi16(v, 4)); }

    template <int I>
    static Floats nibble(Bytes v) {
        return _mm512_cvtepi32_ps(_mm512_and_si512(v, _mm512_set1_epi32(15 << (4 * I))));
    }
    static Bytes skip_four_nibbles(Bytes v) { return _mm512_srli_epi32(v, 16); }

    template <int COUNT>
    static Floats spread(const float *p) {
        if constexpr (COUNT == 1) return _mm512_set1_ps(*p);
        if constexpr (COUNT == 2) {
            return _mm512_mask_blend_ps(0xff00, _mm512_set1_ps(p[0]), _mm512_set1_ps(p[1]));
        }
        if constexpr (COUNT == 4) {
            const Floats four = _mm512_broadcast_f32x4(_mm_loadu_ps(p));
            const Bytes quarters = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
            return _mm512_permutevar_ps(four, quarters);
        }
        if constexpr (COUNT == 16) return _mm512_loadu_ps(p);
    }

    template <int COUNT>
    static void lane_sums(const Floats (&v)[COUNT], float *sums) {
        for (int i = 0; i < COUNT; ++i) {
            const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(v[i]), _mm512_extractf32x8_ps(v[i], 1));
            const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
            const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            sums[i] = _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
        }
    }

    static void transpose(Bytes (&v)[kLanes]) {
        Bytes t[kLanes];
        for (int i = 0; i < 16; i += 2) {
            t[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
            t[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
        }
        for (int i = 0; i < 16; i += 4) {
            v[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
            v[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
            v[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
            v[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
        }
        // v[4 * r + c] now holds rows 4 * r .. + 3 of the columns c, 4 + c, 8 + c, 12 + c: exchange r with those.
        for (int c = 0; c < 4; ++c) {
            const Bytes a = _mm512_shuffle_i32x4(v[c], v[4 + c], 0x88), b = _mm512_shuffle_i32x4(v[c], v[4 + c], 0xdd);
            const Bytes d = _mm512_shuffle_i32x4(v[8 + c], v[12 + c], 0x88);
            const Bytes e = _mm512_shuffle_i32x4(v[8 + c], v[12 + c], 0xdd);
            t[c] = _mm512_shuffle_i32x4(a, d, 0x88);
            t[4 + c] = _mm512_shuffle_i32x4(b, e, 0x88);
            t[8 + c] = _mm512_shuffle_i32x4(a, d, 0xdd);
            t[12 + c] = _mm512_shuffle_i32x4(b, e, 0xdd);
        }
        for (int i = 0; i < 16; ++i) v[i] = t[i];
    }

    static void keep_order(Bytes &sum) { __asm__("" : "+v"(sum)); }

    static constexpr int kPartialTerms = 8;
    using Partial = __m512i;
    using Sums = __m512i;
    static Bytes four_codes(const int8_t *p) {
        int32_t codes;
        memcpy(&codes, p, sizeof(codes));
        return _mm512_set1_epi32(codes);
    }
    static Partial zero_partial() { return _mm512_setzero_si512(); }
    static Partial add_products(Partial sum, Bytes w, Bytes x) {
        sum = _mm512_add_epi16(sum, _mm512_maddubs_epi16(w, x));
        keep_order(sum);
        return sum;
    }
    static Sums zero_sums() { return _mm512_setzero_si512(); }
    static Sums add_partial(Sums sum, Partial part) {
        return _mm512_add_epi32(sum, _mm512_madd_epi16(part, _mm512_set1_epi16(1)));
    }
    static Sums join(Partial high, Partial low) {
        return _mm512_add_epi32(_mm512_madd_epi16(high, _mm512_set1_epi16(256)), add_partial(zero_sums(), low));
    }
    static Floats to_floats(Sums sum) { return _mm512_cvtepi32_ps(sum); }

    static Floats load_nibbles(const uint8_t *p) {
        const Bytes bytes = _mm512_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p)));
        const Bytes pairs = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
        const Bytes shifts = _mm512_setr_epi32(0, 4, 0, 4, 0, 4, 0, 4, 0, 4, 0, 4, 0, 4, 0, 4);
        const Bytes shifted = _mm512_srlv_epi32(_mm512_permutexvar_epi32(pairs, bytes), shifts);
        return _mm512_cvtepi32_ps(_mm512_and_si512(shifted, _mm512_set1_epi32(15)));
    }
    static Floats load_halves(const uint16_t *p) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
    }
};

}  // namespace
