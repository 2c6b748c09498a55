#include <arm_neon.h>

#include "quantize.h"
#include "quantize_kernel.h"

namespace {

struct Neon {
    static constexpr int kParts = 8;

    struct Block {
        float32x4_t part[kParts];
    };

    static Block load(const float *values) {
        Block block;
        for (int i = 0; i < kParts; ++i) block.part[i] = vld1q_f32(values + 4 * i);
        return block;
    }

    static uint16x4_t load_16_bits(const void *values, int part) {
        return vld1_u16(static_cast<const uint16_t *>(values) + 4 * part);
    }

    static Block load(const Half *values) {
        Block block;
        for (int i = 0; i < kParts; ++i) block.part[i] = vcvt_f32_f16(vreinterpret_f16_u16(load_16_bits(values, i)));
        return block;
    }

    static Block load(const Bfloat *values) {
        Block block;
        for (int i = 0; i < kParts; ++i) block.part[i] = vreinterpretq_f32_u32(vshll_n_u16(load_16_bits(values, i), 16));
        return block;
    }

    struct Range {
        float32x4_t low[kParts], high[kParts];

        Range() {
            for (int i = 0; i < kParts; ++i) low[i] = high[i] = vdupq_n_f32(0);
        }

        void widen(const Block &block) {
            for (int i = 0; i < kParts; ++i) {
                low[i] = vminq_f32(low[i], block.part[i]);
                high[i] = vmaxq_f32(high[i], block.part[i]);
            }
        }

        void ends(float *least, float *greatest) const {
            float32x4_t l = low[0], h = high[0];
            for (int i = 1; i < kParts; ++i) {
                l = vminq_f32(l, low[i]);
                h = vmaxq_f32(h, high[i]);
            }
            *least = vminvq_f32(l);
            *greatest = vmaxvq_f32(h);
        }
    };

    struct Steps {
        float32x4_t step, least, most;  // least and most: the ends of the codes, less the zero point
        int16x8_t zero_point;

        explicit Steps(const Grid &grid)
            : step(vdupq_n_f32(grid.step)),
              least(vdupq_n_f32(static_cast<float>(-grid.zero_point))),
              most(vdupq_n_f32(static_cast<float>(15 - grid.zero_point))),
              zero_point(vdupq_n_s16(static_cast<int16_t>(grid.zero_point))) {}
    };

    static int32x4_t rounded(float32x4_t values, const Steps &steps) {
        return vcvtnq_s32_f32(vdivq_f32(values, steps.step));
    }

    static uint8x8_t codes_8_bits(const float32x4_t *values, const Steps &steps) {
        const int16x4_t left = vqmovn_s32(rounded(values[0], steps)), right = vqmovn_s32(rounded(values[1], steps));
        return vqmovun_s16(vaddq_s16(vcombine_s16(left, right), steps.zero_point));
    }

    static uint8x16_t codes(const float32x4_t *values, const Steps &steps) {
        return vminq_u8(vcombine_u8(codes_8_bits(values, steps), codes_8_bits(values + 2, steps)), vdupq_n_u8(15));
    }

    static void encode(const Block &block, const Steps &steps, uint8_t *out) {
        const uint8x16_t first = codes(block.part, steps), second = codes(block.part + 4, steps);
        vst1q_u8(out, vsliq_n_u8(vuzp1q_u8(first, second), vuzp2q_u8(first, second), 4));
    }

    struct Sums {
        float64x2_t signal[2], noise[2];

        Sums() {
            for (int i = 0; i < 2; ++i) signal[i] = noise[i] = vdupq_n_f64(0);
        }

        static void add_squares(float64x2_t sum[2], float32x4_t values) {
            const float64x2_t low = vcvt_f64_f32(vget_low_f32(values)), high = vcvt_high_f64_f32(values);
            sum[0] = vfmaq_f64(sum[0], low, low);
            sum[1] = vfmaq_f64(sum[1], high, high);
        }

        void add(const Block &block, const Steps &steps) {
            for (int i = 0; i < kParts; ++i) {
                const float32x4_t near = vcvtq_f32_s32(rounded(block.part[i], steps));
                const float32x4_t code = vminq_f32(vmaxq_f32(near, steps.least), steps.most);
                add_squares(signal, block.part[i]);
                add_squares(noise, vsubq_f32(block.part[i], vmulq_f32(code, steps.step)));
            }
        }

        void add_to(double *energies) const {
            energies[0] += vaddvq_f64(vaddq_f64(signal[0], signal[1]));
            energies[1] += vaddvq_f64(vaddq_f64(noise[0], noise[1]));
        }
    };
};

}  // namespace

void mq::quantize_rows_neon(const mq_quantize_task *task, int64_t first, int64_t last, double *energies) {
    quantize_rows<Neon>(*task, first, last, energies);
}
