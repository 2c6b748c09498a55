// The loops around the inner kernels. Included once by the file of each instruction set; everything here has internal
// linkage, so that code for one never serves another.
//
// Rows of x are packed in tiles of up to 8. A task is a block of rows of the weight, small enough for the second-level
// cache: for each chunk of columns (whose tile of x fits the first-level cache) and each tile, all its rows.
// The order in which an output is summed up does not depend on the tile, the block or the thread.
#pragma once
#include <stdlib.h>

#include "product.h"
#include "product_layout.h"
#include "product_scales.h"
#include "threads.h"

namespace {

template <int ROWS>
struct WeightRows {
    const uint8_t *codes[ROWS];
    const float *scale[ROWS], *offset[ROWS];
};

}  // namespace

#include "product_float.h"
#include "product_int8.h"

namespace {

constexpr int kTile = 8;
constexpr int64_t kBatch = 512;   // rows of x that are packed at a time
constexpr int kMaxRowBlock = 64;  // rows of the weight per task

inline int tile_at(int64_t rows_left) { return rows_left >= 8 ? 8 : rows_left >= 4 ? 4 : rows_left >= 2 ? 2 : 1; }

template <class Simd, class Kernel>
struct Job {
    const mq_matrix *weight;
    Layout layout;
    const float *x, *bias;
    float *out;
    int64_t count;      // rows of x in this batch
    int64_t row_block;  // rows of the weight per task
    int64_t packed_row_bytes, slot_bytes;
    char *packed, *slots;  // packed x; scratch of each thread

    char *memory = nullptr;

    bool allocate(int64_t batch, int32_t threads) {
        const int64_t tables = 2 * sizeof(float) * layout.table * row_block, codes = layout.columns / 2 * row_block;
        const int64_t spread = sizeof(float) * layout.columns;
        slot_bytes = round_up(tables + codes > spread ? tables + codes : spread, 64);
        packed_row_bytes = Kernel::bytes_per_row(layout);
        memory = static_cast<char *>(aligned_alloc(64, packed_row_bytes * batch + slot_bytes * threads));
        packed = memory;
        slots = memory + packed_row_bytes * batch;
        return memory != nullptr;
    }

    static void pack_tile(void *context, int64_t task, int32_t slot) {
        const Job &job = *static_cast<const Job *>(context);
        float *spread = reinterpret_cast<float *>(job.slots + slot * job.slot_bytes);
        const int64_t end = (task + 1) * kTile < job.count ? (task + 1) * kTile : job.count;
        for (int64_t m = task * kTile; m < end;) {
            const int size = tile_at(end - m);
            for (int i = 0; i < size; ++i) {
                spread_activations(*job.weight, job.layout, job.x + (m + i) * job.weight->columns, spread);
                Kernel::pack(job.layout, spread, job.packed + m * job.packed_row_bytes, size, i);
            }
            m += size;
        }
    }

    // A block of rows of the weight: what its scratch holds.
    struct Block {
        int64_t first, rows;
        const uint8_t *codes[kMaxRowBlock];
        float *scale, *offset;
    };

    Block load_block(int64_t first, int32_t slot) const {
        Block block;
        block.first = first;
        block.rows = weight->rows - first < row_block ? weight->rows - first : row_block;
        block.scale = reinterpret_cast<float *>(slots + slot * slot_bytes);
        block.offset = block.scale + layout.table * row_block;
        uint8_t *scratch = reinterpret_cast<uint8_t *>(block.offset + layout.table * row_block);
        for (int64_t n = 0; n < block.rows; ++n) {
            block.codes[n] = row_codes(*weight, layout, first + n, scratch + n * (layout.columns / 2));
            row_scales<Simd>(*weight, layout, first + n, Kernel::kOffsetFactor, block.scale + n * layout.table,
                             block.offset + n * layout.table);
        }
        return block;
    }

    static void multiply_block(void *context, int64_t task, int32_t slot) {
        const Job &job = *static_cast<const Job *>(context);
        const Block block = job.load_block(task * job.row_block, slot);
        const int64_t chunk = Kernel::kChunkColumns / Kernel::kUnitColumns;
        for (int64_t unit = 0; unit < job.layout.units; unit += chunk) {
            const int64_t end = unit + chunk < job.layout.units ? unit + chunk : job.layout.units;
            for (int64_t m = 0; m < job.count;) {
                const int size = tile_at(job.count - m);
                if (size == 8) job.template multiply_tile<8, 1>(block, m, unit, end);
                if (size == 4) job.template multiply_tile<4, 1>(block, m, unit, end);
                if (size == 2) job.template multiply_tile<2, 2>(block, m, unit, end);
                if (size == 1) job.template multiply_tile<1, 4>(block, m, unit, end);
                m += size;
            }
        }
    }

    template <int COUNT, int ROWS>
    void multiply_tile(const Block &block, int64_t m, int64_t unit, int64_t end) const {
        char *tile = packed + m * packed_row_bytes;
        for (int64_t n = 0; n < block.rows; n += ROWS) {
            WeightRows<ROWS> w;
            for (int i = 0; i < ROWS; ++i) {
                const int64_t row = n + i < block.rows ? n + i : block.rows - 1;  // one too many: not written
                w.codes[i] = block.codes[row];
                w.scale[i] = block.scale + row * layout.table;
                w.offset[i] = block.offset + row * layout.table;
            }
            typename Simd::Floats sum[COUNT * ROWS];
            for (int i = 0; i < COUNT * ROWS; ++i) sum[i] = Simd::zero();
            Kernel::template accumulate<COUNT, ROWS>(layout, w, tile, unit, end, sum);
            float sums[COUNT * ROWS];
            Simd::lane_sums(sum, sums);
            const int64_t rows = block.rows - n < ROWS ? block.rows - n : ROWS;
            for (int j = 0; j < COUNT; ++j) {
                write(sums + j * ROWS, rows, m + j, block.first + n, unit == 0);
            }
        }
    }

    void write(const float *sums, int64_t rows, int64_t m, int64_t n, bool is_first) const {
        float *to = out + m * weight->rows + n;
        for (int64_t i = 0; i < rows; ++i) {
            const float before = !is_first ? to[i] : bias != nullptr ? bias[n + i] : 0;
            to[i] = before + sums[i];
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
    job.row_block = batch <= kTile ? 16 : kMaxRowBlock;
    // 0.02 nanoseconds per product is what fast kernels take; reading a weight takes about 0.05.
    threads = mq::useful_threads(threads, weight.rows * static_cast<double>(weight.columns) * (batch * 0.02 + 0.05));
    if (!job.allocate(batch, threads)) return MQ_OUT_OF_MEMORY;
    for (int64_t m = 0; m < count; m += batch) {
        job.count = count - m < batch ? count - m : batch;
        job.x = x + m * weight.columns;
        job.out = out + m * weight.rows;
        mq::run_tasks(job.pack_tile, &job, (job.count + kTile - 1) / kTile, threads);
        mq::run_tasks(job.multiply_block, &job, (weight.rows + job.row_block - 1) / job.row_block, threads);
    }
    free(job.memory);
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
    return multiply<Simd, Int8Product>(*weight, x, count, bias, out, threads);
}

template <class Simd>
int32_t multiply_float(const mq_matrix *weight, const float *x, int64_t count, const float *bias, float *out,
                       int32_t threads) {
    return multiply<Simd, FloatProduct>(*weight, x, count, bias, out, threads);
}

}  // namespace
