// The products of each instruction set, for the dispatch in product.cpp.
#pragma once
#include "api.h"

namespace mq {

using Product = int32_t (*)(const mq_matrix *weight, const float *x, int64_t count, const float *bias, float *out,
                            int32_t threads);

struct Products {
    Product int8, floats;
};

// Each is defined in the file of its name, compiled where MQ_WITH_<NAME> is defined.
extern const Products products_avx2, products_avx_vnni, products_avx512, products_avx512_vnni, products_neon;

}  // namespace mq
