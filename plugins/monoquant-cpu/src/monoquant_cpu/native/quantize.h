// The quantizers of each instruction set, for the dispatch in quantize.cpp.
#pragma once
#include "api.h"

namespace mq {

// Quantizes rows [first, last) of the task, first being even, and adds to energies[2] unless it is NULL.
using QuantizeRows = void(const mq_quantize_task *task, int64_t first, int64_t last, double *energies);

// Each is defined in the file of its name, compiled where MQ_WITH_<NAME> is defined.
QuantizeRows quantize_rows_avx2, quantize_rows_avx512, quantize_rows_neon;

}  // namespace mq
