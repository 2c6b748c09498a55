// A placeholder: plain products, the same for both kinds.
#include <math.h>
#include <string.h>

#include "api.h"

namespace {

float widened(const void *scales, int32_t dtype, int64_t index) {
    if (dtype == MQ_FLOAT32) return static_cast<const float *>(scales)[index];
    const uint32_t bits = static_cast<const uint16_t *>(scales)[index];
    uint32_t wide = bits << 16;
    if (dtype == MQ_FLOAT16) {
        const int exponent = bits >> 10 & 31;
        const float fraction = static_cast<float>(bits & 1023);
        const float value = exponent == 31 ? INFINITY : exponent ? ldexpf(1024 + fraction, exponent - 25) : ldexpf(fraction, -24);
        return bits >> 15 ? -value : value;
    }
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

int nibble(const uint8_t *bytes, int64_t index) { return bytes[index / 2] >> (index % 2 * 4) & 15; }

int32_t multiply(int32_t isa, const mq_matrix *w, const float *x, int64_t count, const float *bias, float *out) {
    if (!mq_supports(isa)) return MQ_NO_SUCH_ISA;
    const int64_t groups = (w->columns + w->group_size - 1) / w->group_size;
    for (int64_t m = 0; m < count; ++m) {
        for (int64_t n = 0; n < w->rows; ++n) {
            const uint8_t *codes = w->qweight + n * ((w->columns + 1) / 2);
            double sum = bias ? bias[n] : 0;
            for (int64_t k = 0; k < w->columns; ++k) {
                const int64_t group = n * groups + k / w->group_size;
                const int zero = w->zero_point ? nibble(w->zero_point, group) : 8;
                sum += static_cast<double>((nibble(codes, k) - zero) * widened(w->scale, w->scale_dtype, group)) * x[m * w->columns + k];
            }
            out[m * w->rows + n] = static_cast<float>(sum);
        }
    }
    return MQ_OK;
}

}  // namespace

int32_t mq_product_int8(int32_t isa, const mq_matrix *weight, const float *x, int64_t count, const float *bias, float *out, int32_t) {
    return multiply(isa, weight, x, count, bias, out);
}

int32_t mq_product_float(int32_t isa, const mq_matrix *weight, const float *x, int64_t count, const float *bias, float *out, int32_t) {
    return multiply(isa, weight, x, count, bias, out);
}
