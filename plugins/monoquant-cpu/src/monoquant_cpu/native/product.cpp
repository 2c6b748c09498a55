// Flags: none beyond the common ones; -DMQ_WITH_AVX2 ... for each product_*.cpp that is compiled too.
#include "product.h"

namespace {

const mq::Products *products_of(int32_t isa) {
    if (mq_supports(isa) == 0) return nullptr;
    switch (isa) {
#ifdef MQ_WITH_AVX2
        case MQ_AVX2: return &mq::products_avx2;
#endif
#ifdef MQ_WITH_AVX_VNNI
        case MQ_AVX_VNNI: return &mq::products_avx_vnni;
#endif
#ifdef MQ_WITH_AVX512
        case MQ_AVX512: return &mq::products_avx512;
#endif
#ifdef MQ_WITH_AVX512_VNNI
        case MQ_AVX512_VNNI: return &mq::products_avx512_vnni;
#endif
#ifdef MQ_WITH_NEON
        case MQ_NEON: return &mq::products_neon;
#endif
        default: return nullptr;
    }
}

bool is_valid(const mq_matrix *weight, const float *x, int64_t count, const float *out) {
    if (weight == nullptr || count < 0) return false;
    if (count > 0 && (x == nullptr || out == nullptr)) return false;
    if (weight->qweight == nullptr || weight->scale == nullptr) return false;
    if (weight->scale_dtype < MQ_FLOAT32 || weight->scale_dtype > MQ_BFLOAT16) return false;
    if (weight->rows < 1 || weight->columns < 1) return false;
    return weight->group_size >= 1 && weight->group_size <= weight->columns;
}

int32_t multiply(int32_t isa, mq::Product mq::Products::*kind, const mq_matrix *weight, const float *x, int64_t count,
                 const float *bias, float *out, int32_t threads) {
    const mq::Products *products = products_of(isa);
    if (products == nullptr) return MQ_NO_SUCH_ISA;
    if (!is_valid(weight, x, count, out)) return MQ_BAD_ARGUMENT;
    if (count == 0) return MQ_OK;
    return (products->*kind)(weight, x, count, bias, out, threads);
}

}  // namespace

int32_t mq_product_int8(int32_t isa, const mq_matrix *weight, const float *x, int64_t count, const float *bias,
                        float *out, int32_t threads) {
    return multiply(isa, &mq::Products::int8, weight, x, count, bias, out, threads);
}

int32_t mq_product_float(int32_t isa, const mq_matrix *weight, const float *x, int64_t count, const float *bias,
                         float *out, int32_t threads) {
    return multiply(isa, &mq::Products::floats, weight, x, count, bias, out, threads);
}
