// The loops around the inner kernels. Included once by the file of each instruction set; everything here has internal
// linkage, so that code for one never serves another.
//
// A task is a block of rows of w. For each chunk of columns and each few rows of the block (a panel), it multiplies all
// tiles, a few rows of x each. Panel and tile of a chunk fit the first-level cache, the chunk of x the second-level
// one.
// The order in which an output is summed up depends neither on the block nor on the thread.
#pragma once
#include <stdlib.h>

#include "panel_float.h"
#include "panel_int8.h"
#include "product.h"
#include "rows_digits.h"
#include "threads.h"

namespace {

// Up to so many rows of x, unpacking panels costs more than it saves.
constexpr int64_t kFewRowsInt8 = 4, kFewRowsFloat = 6;
constexpr int64_t kBatch = 256;  // rows of x that are packed at a time

template <class Simd, class Kernel>
struct Job {
    const mq_matrix *weight;
    Layout layout;
    const float *x, *bias;
    float *out;
    int64_t count;       // rows of x in this batch
    int64_t block_rows;  // rows of w per task
    int64_t packed_row_bytes, panel_bytes, sums_bytes, slot_bytes;
    char *packed, *slots;  // packed x; scratch of each thread: a panel, sums, a block

    int64_t tiles() const {
        int64_t found = 0;
        for (int64_t m = 0; m < count; ++found) m += Kernel::tile_at(count - m);
        return found;
    }

    bool allocate(int64_t batch, int32_t threads) {
        panel_bytes = round_up(Kernel::panel_bytes(layout), 64);
        sums_bytes = round_up(sizeof(float) * batch * round_up(block_rows, Kernel::kRows), 64);
        const int64_t block = panel_bytes + sums_bytes + block_bytes(layout, block_rows);
        const int64_t spread = sizeof(float) * layout.columns;
        slot_bytes = round_up(block > spread ? block : spread, 64);
        packed_row_bytes = Kernel::bytes_per_row(layout);
        packed = static_cast<char *>(aligned_alloc(64, round_up(packed_row_bytes * batch, 64) + slot_bytes * threads));
        slots = packed + round_up(packed_row_bytes * batch, 64);
        return packed != nullptr;
    }

    static void pack_tile(void *context, int64_t task, int32_t slot) {
        const Job &job = *static_cast<const Job *>(context);
        float *spread = reinterpret_cast<float *>(job.slots + slot * job.slot_bytes);
        int64_t m = 0;
        for (int64_t tile = 0; tile < task; ++tile) m += Kernel::tile_at(job.count - m);
        const int size = Kernel::tile_at(job.count - m);
        for (int i = 0; i < size; ++i) {
            spread_activations(*job.weight, job.layout, job.x + (m + i) * job.weight->columns, spread);
            Kernel::pack(job.layout, spread, job.packed + m * job.packed_row_bytes, size, i);
        }
    }

    static void multiply_block(void *context, int64_t task, int32_t slot) {
        const Job &job = *static_cast<const Job *>(context);
        char *panel = job.slots + slot * job.slot_bytes;
        float *sums = reinterpret_cast<float *>(panel + job.panel_bytes);
        WeightBlock block;
        const int64_t row = task * job.block_rows;
        load_block<Simd>(*job.weight, job.layout, row, job.block_rows, Kernel::kOffsetFactor,
                         panel + job.panel_bytes + job.sums_bytes, &block);
        const int64_t chunk = Kernel::chunk_columns(job.count);
        for (int64_t column = 0; column < job.layout.columns; column += chunk) {
            const int64_t left = job.layout.columns - column;
            const int64_t end = column + (left < chunk ? left : chunk);
            for (int64_t n = 0; n < block.rows; n += Kernel::kRows) {
                Kernel::prepare(job.layout, block, n, column, end, panel);
                job.multiply_panel(block, n, panel, column, end, sums + n * job.count);
            }
        }
        for (int64_t n = 0; n < block.rows; n += Kernel::kRows) job.write(sums + n * job.count, row, n, block.rows);
    }

    void multiply_panel(const WeightBlock &block, int64_t n, const char *panel, int64_t column, int64_t end,
                        float *sums) const {
        for (int64_t m = 0; m < count;) {
            const int size = Kernel::tile_at(count - m);
            char *tile = packed + m * packed_row_bytes;
            multiply_tile<Kernel::kTile>(size, block, n, tile, panel, column, end, sums + m * Kernel::kRows);
            m += size;
        }
    }

    template <int COUNT>
    void multiply_tile(int size, const WeightBlock &block, int64_t n, char *tile, const char *panel, int64_t column,
                       int64_t end, float *sums) const {
        if (size == COUNT) {
            Kernel::template multiply<COUNT>(layout, block, n, tile, panel, column, end, sums);
            return;
        }
        if constexpr (COUNT > 1) multiply_tile<COUNT - 1>(size, block, n, tile, panel, column, end, sums);
    }

    // sums: [count, Kernel::kRows], of rows n ... of the block that starts at `row`.
    void write(const float *sums, int64_t row, int64_t n, int64_t block_rows_left) const {
        const int64_t rows = block_rows_left - n < Kernel::kRows ? block_rows_left - n : Kernel::kRows;
        float *to = out + row + n;
        for (int64_t m = 0; m < count; ++m, to += weight->rows, sums += Kernel::kRows) {
            if (bias == nullptr) {
                memcpy(to, sums, sizeof(float) * rows);
                continue;
            }
            for (int64_t i = 0; i < rows; ++i) to[i] = bias[row + n + i] + sums[i];
        }
    }
};

template <class Simd, class Kernel>
int32_t multiply_with(const mq_matrix &weight, const Layout &layout, const float *x, int64_t count, const float *bias,
                      float *out, int32_t threads) {
    Job<Simd, Kernel> job = {};
    job.weight = &weight;
    job.layout = layout;
    job.bias = bias;
    const int64_t batch = count < kBatch ? count : kBatch;
    job.block_rows = batch <= 2 ? 16 : kMaxBlockRows;
    // 0.02 nanoseconds per product is what fast kernels take; reading a weight takes about 0.05.
    threads = mq::useful_threads(threads, weight.rows * static_cast<double>(weight.columns) * (batch * 0.02 + 0.05));
    if (!job.allocate(batch, threads)) return MQ_OUT_OF_MEMORY;
    for (int64_t m = 0; m < count; m += batch) {
        job.count = count - m < batch ? count - m : batch;
        job.x = x + m * weight.columns;
        job.out = out + m * weight.rows;
        mq::run_tasks(job.pack_tile, &job, job.tiles(), threads);
        mq::run_tasks(job.multiply_block, &job, (weight.rows + job.block_rows - 1) / job.block_rows, threads);
    }
    free(job.packed);
    return MQ_OK;
}

template <class Simd, template <class, int> class Kernel>
int32_t multiply(const mq_matrix &weight, const float *x, int64_t count, const float *bias, float *out,
                 int32_t threads) {
    const Layout layout = make_layout(weight, 2 * Simd::kBytes);
    switch (layout.grain) {
        case 128: return multiply_with<Simd, Kernel<Simd, 128>>(weight, layout, x, count, bias, out, threads);
        case 64: return multiply_with<Simd, Kernel<Simd, 64>>(weight, layout, x, count, bias, out, threads);
        case 32: return multiply_with<Simd, Kernel<Simd, 32>>(weight, layout, x, count, bias, out, threads);
        default: return multiply_with<Simd, Kernel<Simd, 8>>(weight, layout, x, count, bias, out, threads);
    }
}

template <class Simd>
int32_t multiply_int8(const mq_matrix *weight, const float *x, int64_t count, const float *bias, float *out,
                      int32_t threads) {
    if (count <= kFewRowsInt8) return multiply<Simd, RowsInt8>(*weight, x, count, bias, out, threads);
    return multiply<Simd, PanelInt8>(*weight, x, count, bias, out, threads);
}

template <class Simd>
int32_t multiply_float(const mq_matrix *weight, const float *x, int64_t count, const float *bias, float *out,
                       int32_t threads) {
    if (count <= kFewRowsFloat) return multiply<Simd, RowsFloat>(*weight, x, count, bias, out, threads);
    return multiply<Simd, PanelFloat>(*weight, x, count, bias, out, threads);
}

}  // namespace
