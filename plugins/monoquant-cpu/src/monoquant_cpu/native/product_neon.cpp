// Flags: -march=armv8.2-a+dotprod
#include "product_driver.h"
#include "simd_neon.h"

namespace mq {
extern const Products products_neon = {multiply_int8<Neon>, multiply_float<Neon>};
}
