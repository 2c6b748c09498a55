// Flags: -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni
#include "product_driver.h"
#include "simd_avx512.h"

namespace {

struct Avx512Vnni : Avx512 {
    static constexpr int kPartialTerms = 32;  // 32-bit sums: no limit, this is a whole grain
    static Partial add_products(Partial sum, Bytes w, Bytes x) { return _mm512_dpbusd_epi32(sum, w, x); }
    static Sums add_partial(Sums sum, Partial part) { return _mm512_add_epi32(sum, part); }
    static Sums join(Partial high, Partial low) { return _mm512_add_epi32(_mm512_slli_epi32(high, 8), low); }
};

}  // namespace

namespace mq {
extern const Products products_avx512_vnni = {multiply_int8<Avx512Vnni>, multiply_float<Avx512Vnni>};
}
