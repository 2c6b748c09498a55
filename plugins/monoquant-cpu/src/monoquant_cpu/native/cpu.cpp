// Flags: none beyond the common ones; -DMQ_WITH_AVX2 ... for each instruction set that is compiled in.
#include "api.h"

#if defined(MQ_WITH_NEON) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

int32_t mq_version(void) { return 1; }

// The compiler's own checks include whether the operating system saves the wide registers.
int32_t mq_supports(int32_t isa) {
    switch (isa) {
#ifdef MQ_WITH_AVX2
        case MQ_AVX2:
            return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#endif
#ifdef MQ_WITH_AVX_VNNI
        case MQ_AVX_VNNI:
            return __builtin_cpu_supports("avxvnni") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#endif
#ifdef MQ_WITH_AVX512
        case MQ_AVX512:
            return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#endif
#ifdef MQ_WITH_AVX512_VNNI
        case MQ_AVX512_VNNI:
            return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                   __builtin_cpu_supports("avx512vnni");
#endif
#ifdef MQ_WITH_NEON
        case MQ_NEON:
#ifdef __linux__
            return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#else
            return 1;  // every Apple processor that runs arm64 has the dot product
#endif
#endif
        default: return 0;
    }
}
