// Flags: -mavx512f -mavx512bw -mavx512vl -mavx512dq
#include "product_driver.h"
#include "simd_avx512.h"

namespace mq {
extern const Products products_avx512 = {multiply_int8<Avx512>, multiply_float<Avx512>};
}
