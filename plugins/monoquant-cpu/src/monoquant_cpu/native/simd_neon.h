// Vectors of 16 bytes or 4 floats with the dot product of armv8.2; simd_avx2.h tells what the functions mean.
#pragma once
#include <arm_neon.h>
#include <stdint.h>
#include <string.h>

namespace {

struct Neon {
    static constexpr int kBytes = 16, kLanes = 4;
    static constexpr int kInt8Tile = 4, kFloatTile = 6, kPanelVectors = 4;
    using Bytes = uint8x16_t;
    using Floats = float32x4_t;

    static Bytes load_bytes(const uint8_t *p) { return vld1q_u8(p); }
    static Floats load(const float *p) { return vld1q_f32(p); }
    static Floats load_first(const float *p, int64_t count) {
        if (count >= kLanes) return load(p);
        float lanes[kLanes] = {};
        for (int64_t i = 0; i < count; ++i) lanes[i] = p[i];
        return load(lanes);
    }
    static void store(float *p, Floats v) { vst1q_f32(p, v); }
    static Bytes load_aligned(const uint8_t *p) { return vld1q_u8(p); }
    static void store_aligned(uint8_t *p, Bytes v) { vst1q_u8(p, v); }
    static Floats zero() { return vdupq_n_f32(0); }
    static Floats set(float v) { return vdupq_n_f32(v); }
    static Floats add(Floats a, Floats b) { return vaddq_f32(a, b); }
    static Floats multiply(Floats a, Floats b) { return vmulq_f32(a, b); }
    static Floats multiply_add(Floats a, Floats b, Floats c) { return vfmaq_f32(c, a, b); }

    static Bytes low_nibbles(Bytes v) { return vandq_u8(v, vdupq_n_u8(15)); }
    static Bytes high_nibbles(Bytes v) { return vshrq_n_u8(v, 4); }

    template <int I>
    static Floats nibble(Bytes v) {
        return vcvtq_f32_u32(vandq_u32(vreinterpretq_u32_u8(v), vdupq_n_u32(15u << (4 * I))));
    }
    static Bytes skip_four_nibbles(Bytes v) { return vreinterpretq_u8_u32(vshrq_n_u32(vreinterpretq_u32_u8(v), 16)); }

    // Codes of w are 0..15: the same signed or not.
    static int32x4_t add_dot(int32x4_t sum, Bytes w, int8x16_t x) { return vdotq_s32(sum, vreinterpretq_s8_u8(w), x); }

    template <int COUNT>
    static Floats spread(const float *p) {
        if constexpr (COUNT == 1) return vld1q_dup_f32(p);
        if constexpr (COUNT == 4) return vld1q_f32(p);
    }

    template <int COUNT>
    static void lane_sums(const Floats (&v)[COUNT], float *sums) {
        for (int i = 0; i < COUNT; ++i) sums[i] = vaddvq_f32(v[i]);
    }

    static void transpose(Bytes (&v)[kLanes]) {
        const uint32x4x2_t a = vtrnq_u32(vreinterpretq_u32_u8(v[0]), vreinterpretq_u32_u8(v[1]));
        const uint32x4x2_t b = vtrnq_u32(vreinterpretq_u32_u8(v[2]), vreinterpretq_u32_u8(v[3]));
        for (int i = 0; i < 2; ++i) {
            v[i] = vreinterpretq_u8_u32(vcombine_u32(vget_low_u32(a.val[i]), vget_low_u32(b.val[i])));
            v[i + 2] = vreinterpretq_u8_u32(vcombine_u32(vget_high_u32(a.val[i]), vget_high_u32(b.val[i])));
        }
    }

    static constexpr int kPartialTerms = 32;  // 32-bit sums: no limit, this is a whole grain
    using Partial = int32x4_t;
    using Sums = int32x4_t;
    static Bytes four_codes(const int8_t *p) {
        uint32_t codes;
        memcpy(&codes, p, sizeof(codes));
        return vreinterpretq_u8_u32(vdupq_n_u32(codes));
    }
    static Partial zero_partial() { return vdupq_n_s32(0); }
    static Partial add_products(Partial sum, Bytes w, Bytes x) { return add_dot(sum, w, vreinterpretq_s8_u8(x)); }
    static Sums zero_sums() { return vdupq_n_s32(0); }
    static Sums add_partial(Sums sum, Partial part) { return vaddq_s32(sum, part); }
    static Sums join(Partial high, Partial low) { return vaddq_s32(vshlq_n_s32(high, 8), low); }
    static Floats to_floats(Sums sum) { return vcvtq_f32_s32(sum); }

    static Floats load_nibbles(const uint8_t *p) {
        const uint32_t packed = p[0] | static_cast<uint32_t>(p[1]) << 8;
        const int32_t shifts[kLanes] = {0, -4, -8, -12};
        return vcvtq_f32_u32(vandq_u32(vshlq_u32(vdupq_n_u32(packed), vld1q_s32(shifts)), vdupq_n_u32(15)));
    }
    static Floats load_halves(const uint16_t *p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
};

}  // namespace
