// Flags: -mavx2 -mfma -mf16c -mavxvnni
#include "product_driver.h"
#include "simd_avx2.h"

namespace {

struct AvxVnni : Avx2 {
    static constexpr int kPartialTerms = 32;  // 32-bit sums: no limit, this is a whole grain
    static Partial add_products(Partial sum, Bytes w, Bytes x) { return _mm256_dpbusd_avx_epi32(sum, w, x); }
    static Sums add_partial(Sums sum, Partial part) { return _mm256_add_epi32(sum, part); }
    static Sums join(Partial high, Partial low) { return _mm256_add_epi32(_mm256_slli_epi32(high, 8), low); }
};

}  // namespace

namespace mq {
extern const Products products_avx_vnni = {multiply_int8<AvxVnni>, multiply_float<AvxVnni>};
}
