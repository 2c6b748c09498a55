#include "quantize.h"

#include <stdlib.h>

#include "threads.h"

namespace {

// Values that one thread quantizes at a time. The same for any number of threads: so are the sums of energies.
constexpr int64_t kPortion = 1 << 17;

struct Portions {
    const mq_quantize_task *task;
    mq::QuantizeRows *quantize;
    int64_t rows;      // of each portion; even, so that its zero points start at a byte
    double *energies;  // [portions, 2], or NULL
};

mq::QuantizeRows *rows_for(int32_t isa) {
    switch (isa) {
#ifdef MQ_WITH_AVX2
        case MQ_AVX2:
        case MQ_AVX_VNNI:
            return mq::quantize_rows_avx2;
#endif
#ifdef MQ_WITH_AVX512
        case MQ_AVX512:
        case MQ_AVX512_VNNI:
            return mq::quantize_rows_avx512;
#endif
#ifdef MQ_WITH_NEON
        case MQ_NEON:
            return mq::quantize_rows_neon;
#endif
        default:
            return nullptr;
    }
}

bool is_dtype(int32_t dtype) { return dtype == MQ_FLOAT32 || dtype == MQ_FLOAT16 || dtype == MQ_BFLOAT16; }

bool is_valid(const mq_quantize_task *task) {
    return task && task->values && task->qweight && task->scale && (task->symmetric || task->zero_point) &&
           task->rows >= 1 && task->columns >= 1 && task->group_size >= 1 && task->group_size <= task->columns &&
           is_dtype(task->dtype) && is_dtype(task->scale_dtype);
}

void quantize_portion(void *context, int64_t index, int32_t) {
    const Portions &portions = *static_cast<const Portions *>(context);
    const int64_t first = index * portions.rows, left = portions.task->rows - first;
    const int64_t last = first + (portions.rows < left ? portions.rows : left);
    portions.quantize(portions.task, first, last, portions.energies ? portions.energies + 2 * index : nullptr);
}

}  // namespace

int32_t mq_quantize(int32_t isa, const mq_quantize_task *task, int32_t threads) {
    if (!is_valid(task) || threads < 1) return MQ_BAD_ARGUMENT;
    if (!mq_supports(isa)) return MQ_NO_SUCH_ISA;
    const int64_t fitting = kPortion / task->columns;
    Portions portions = {task, rows_for(isa), fitting < 2 ? 2 : fitting / 2 * 2, nullptr};
    const int64_t count = (task->rows + portions.rows - 1) / portions.rows;
    if (task->energies) {
        portions.energies = static_cast<double *>(calloc(static_cast<size_t>(count), 2 * sizeof(double)));
        if (!portions.energies) return MQ_OUT_OF_MEMORY;
    }
    mq::run_tasks(quantize_portion, &portions, count, threads);
    for (int64_t i = 0; task->energies && i < 2 * count; ++i) task->energies[i % 2] += portions.energies[i];
    free(portions.energies);
    return MQ_OK;
}
