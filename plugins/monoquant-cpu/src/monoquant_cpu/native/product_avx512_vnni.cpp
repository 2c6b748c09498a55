// Flags: -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni
#include "product_driver.h"
#include "simd_avx512.h"

namespace {

struct Avx512Vnni : Avx512 {
    template <int COUNT>
    static Floats dot(const Bytes (&low)[COUNT], const Bytes (&high)[COUNT], const int8_t *x) {
        __m512i sum = _mm512_setzero_si512();
        for (int b = 0; b < COUNT; ++b) {
            sum = _mm512_dpbusd_epi32(sum, low[b], _mm512_load_si512(x + 2 * b * kBytes));
            sum = _mm512_dpbusd_epi32(sum, high[b], _mm512_load_si512(x + (2 * b + 1) * kBytes));
        }
        return _mm512_cvtepi32_ps(sum);
    }

    static constexpr int kPartialTerms = 32;  // 32-bit sums: no limit, this is a whole grain
    static Partial add_products(Partial sum, Bytes w, Bytes x) { return _mm512_dpbusd_epi32(sum, w, x); }
    static Sums add_partial(Sums sum, Partial part) { return _mm512_add_epi32(sum, part); }
};

}  // namespace

namespace mq {
extern const Products products_avx512_vnni = {multiply_int8<Avx512Vnni>, multiply_float<Avx512Vnni>};
}
