// Flags: -mavx2 -mfma -mf16c -mavxvnni
#include "product_driver.h"
#include "simd_avx2.h"

namespace {

struct AvxVnni : Avx2 {
    template <int COUNT>
    static Floats dot(const Bytes (&low)[COUNT], const Bytes (&high)[COUNT], const int8_t *x) {
        const __m256i *codes = reinterpret_cast<const __m256i *>(x);
        __m256i sum = _mm256_setzero_si256();
        for (int b = 0; b < COUNT; ++b) {
            sum = _mm256_dpbusd_avx_epi32(sum, low[b], _mm256_load_si256(codes + 2 * b));
            sum = _mm256_dpbusd_avx_epi32(sum, high[b], _mm256_load_si256(codes + 2 * b + 1));
        }
        return _mm256_cvtepi32_ps(sum);
    }

    static constexpr int kPartialTerms = 32;  // 32-bit sums: no limit, this is a whole grain
    static Partial add_products(Partial sum, Bytes w, Bytes x) { return _mm256_dpbusd_avx_epi32(sum, w, x); }
    static Sums add_partial(Sums sum, Partial part) { return _mm256_add_epi32(sum, part); }
};

}  // namespace

namespace mq {
extern const Products products_avx_vnni = {multiply_int8<AvxVnni>, multiply_float<AvxVnni>};
}
