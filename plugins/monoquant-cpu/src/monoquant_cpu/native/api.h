// The C interface of the native kernels: no C++ types, no torch, so that one library serves every torch and Python.
#pragma once
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MQ_API __attribute__((visibility("default")))

enum { MQ_FLOAT32 = 0, MQ_FLOAT16 = 1, MQ_BFLOAT16 = 2 };

// Instruction sets, each a complete set of kernels.
enum { MQ_AVX2 = 0, MQ_AVX_VNNI = 1, MQ_AVX512 = 2, MQ_AVX512_VNNI = 3, MQ_NEON = 4, MQ_ISA_COUNT = 5 };

enum { MQ_OK = 0, MQ_NO_SUCH_ISA = 1, MQ_OUT_OF_MEMORY = 2, MQ_BAD_ARGUMENT = 3 };

// A packed matrix in monoquant's canonical storage (monoquant/modules/packed_matrix.py): w = (q - zero_point) * scale.
typedef struct {
    const uint8_t *qweight;     // [rows, ceil(columns / 2)], low nibble = even column, 0..15
    const void *scale;          // [rows, groups] of scale_dtype; negative ones are possible when symmetric
    const uint8_t *zero_point;  // nibbles of [rows * groups] in row-major order; NULL: 8 everywhere (symmetric)
    int64_t rows, columns;      // >= 1, any
    int64_t group_size;         // columns per group, 1 <= group_size <= columns; the last group may be shorter
    int32_t scale_dtype;
} mq_matrix;

MQ_API int32_t mq_version(void);             // of this interface
MQ_API int32_t mq_supports(int32_t isa);     // 1: compiled in, and this CPU (and its operating system) has it

// out[m, n] = sum_k x[m, k] * w[n, k] (+ bias[n]); x [count, columns], out [count, rows], both contiguous float32; bias may be NULL.
// int8: each group of each row of x is rounded to 8 bits; a row with nan or inf gives nan in all its outputs where it meets it.
MQ_API int32_t mq_product_int8(int32_t isa, const mq_matrix *weight, const float *x, int64_t count, const float *bias, float *out, int32_t threads);
// float: as exact as a float32 product with the dequantized matrix.
MQ_API int32_t mq_product_float(int32_t isa, const mq_matrix *weight, const float *x, int64_t count, const float *bias, float *out, int32_t threads);

// Round to nearest (bit-identical to monoquant.numerics.affine.round_to_nearest) and pack rows of a float matrix.
typedef struct {
    const void *values;   // [rows, columns] of dtype, rows row_stride elements apart, columns adjacent; finite
    int64_t rows, columns, row_stride, group_size;
    int32_t dtype, scale_dtype, symmetric;
    uint8_t *qweight;     // out, as in mq_matrix
    void *scale;          // out
    uint8_t *zero_point;  // out; NULL when symmetric. Its first nibble is that of the first row and group.
    double *energies;     // out [2] or NULL: sums of values^2 and of (values - dequantized)^2 are ADDED to it
} mq_quantize_task;
MQ_API int32_t mq_quantize(int32_t isa, const mq_quantize_task *task, int32_t threads);

#ifdef __cplusplus
}
#endif
