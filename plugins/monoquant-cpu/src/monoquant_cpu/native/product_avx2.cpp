// Flags: -mavx2 -mfma -mf16c
#include "product_driver.h"
#include "simd_avx2.h"

namespace mq {
extern const Products products_avx2 = {multiply_int8<Avx2>, multiply_float<Avx2>};
}
