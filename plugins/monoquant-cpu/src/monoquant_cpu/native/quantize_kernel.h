// Rows of a matrix to packed codes, for any instruction set. `Isa` has
//   Block: 32 floats, with load(const Value *) for each dtype, Half and Bfloat being 16 bits each;
//   Range: the least and greatest of 0 and all blocks it was widened with;
//   Steps: a Grid in vectors, with encode(Block, Steps, uint8_t out[16]);
//   Sums: energies of blocks, in double precision.
#pragma once
#include "quantize_grid.h"

namespace {

struct Half {
    uint16_t bits;
};
struct Bfloat {
    uint16_t bits;
};

constexpr int64_t kBlock = 32;
// Groups whose grids are chosen together, so that their divisions overlap; few enough that they stay in a cache.
constexpr int64_t kMostGroups = 16;
constexpr int64_t kBatch = 4096;

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

template <class Isa, class Value, bool Measured>
class RowQuantizer {
  public:
    explicit RowQuantizer(const mq_quantize_task &task)
        : task(task), groups((task.columns + task.group_size - 1) / task.group_size) {
        const int64_t fitting = kBatch / task.group_size;
        batch = fitting < 1 ? 1 : smaller(fitting, kMostGroups);
    }

    void quantize(int64_t row) {
        const Value *values = static_cast<const Value *>(task.values) + row * task.row_stride;
        uint8_t *packed = task.qweight + row * ((task.columns + 1) / 2);
        for (int64_t first = 0; first < groups; first += batch) {
            const int64_t count = smaller(batch, groups - first);
            Grid grids[kMostGroups];
            choose(values, row * groups + first, first, count, grids);
            for (int64_t i = 0; i < count; ++i) {
                const int64_t start = (first + i) * task.group_size;
                encode(values + start, length_from(start), start, grids[i], packed);
            }
        }
    }

    void add_energies(double *energies) const { sums.add_to(energies); }

  private:
    const mq_quantize_task &task;
    const int64_t groups;
    int64_t batch;
    typename Isa::Sums sums;

    int64_t length_from(int64_t start) const { return smaller(task.group_size, task.columns - start); }

    // Grids of groups [first, first + count) of a row; index is that of the first among those of all rows.
    void choose(const Value *values, int64_t index, int64_t first, int64_t count, Grid *grids) {
        float low[kMostGroups], high[kMostGroups];
        for (int64_t i = 0; i < count; ++i) {
            const int64_t start = (first + i) * task.group_size;
            range_of(values + start, length_from(start), &low[i], &high[i]);
        }
        for (int64_t i = 0; i < count; ++i) grids[i] = choose_grid(low[i], high[i], task, index + i);
        if (task.symmetric) return;
        for (int64_t i = 0; i < count; ++i) {
            const uint8_t code = static_cast<uint8_t>(grids[i].zero_point);
            uint8_t *byte = task.zero_point + (index + i) / 2;
            *byte = (index + i) % 2 ? static_cast<uint8_t>(*byte | code << 4) : code;
        }
    }

    static void range_of(const Value *values, int64_t length, float *low, float *high) {
        typename Isa::Range range;
        int64_t i = 0;
        for (; i + kBlock <= length; i += kBlock) range.widen(Isa::load(values + i));
        if (i < length) range.widen(load_part(values + i, length - i));
        range.ends(low, high);
    }

    static typename Isa::Block load_part(const Value *values, int64_t count) {
        Value part[kBlock] = {};
        memcpy(part, values, static_cast<size_t>(count) * sizeof(Value));
        return Isa::load(part);
    }

    void encode(const Value *values, int64_t length, int64_t start, const Grid &grid, uint8_t *packed) {
        const typename Isa::Steps steps(grid);
        int64_t i = 0;
        if (start % 2) {  // the high nibble of a byte whose low one is the group before
            uint8_t codes[kBlock / 2];
            encode_block(load_part(values, 1), steps, codes);
            packed[start / 2] = static_cast<uint8_t>(packed[start / 2] | codes[0] << 4);
            i = 1;
        }
        uint8_t *out = packed + (start + i) / 2;
        for (; i + kBlock <= length; i += kBlock, out += kBlock / 2) encode_block(Isa::load(values + i), steps, out);
        if (i < length) encode_part(values + i, length - i, steps, out);
    }

    void encode_part(const Value *values, int64_t count, const typename Isa::Steps &steps, uint8_t *out) {
        uint8_t codes[kBlock / 2];
        encode_block(load_part(values, count), steps, codes);
        if (count % 2) codes[count / 2] &= 15;
        memcpy(out, codes, static_cast<size_t>(count + 1) / 2);
    }

    void encode_block(const typename Isa::Block &block, const typename Isa::Steps &steps, uint8_t *out) {
        Isa::encode(block, steps, out);
        if (Measured) sums.add(block, steps);
    }
};

template <class Isa, class Value, bool Measured>
void quantize_rows_as(const mq_quantize_task &task, int64_t first, int64_t last, double *energies) {
    RowQuantizer<Isa, Value, Measured> quantizer(task);
    for (int64_t row = first; row < last; ++row) quantizer.quantize(row);
    if (Measured) quantizer.add_energies(energies);
}

template <class Isa, class Value>
void quantize_rows_of(const mq_quantize_task &task, int64_t first, int64_t last, double *energies) {
    if (energies) return quantize_rows_as<Isa, Value, true>(task, first, last, energies);
    quantize_rows_as<Isa, Value, false>(task, first, last, nullptr);
}

template <class Isa>
void quantize_rows(const mq_quantize_task &task, int64_t first, int64_t last, double *energies) {
    if (task.dtype == MQ_FLOAT16) return quantize_rows_of<Isa, Half>(task, first, last, energies);
    if (task.dtype == MQ_BFLOAT16) return quantize_rows_of<Isa, Bfloat>(task, first, last, energies);
    quantize_rows_of<Isa, float>(task, first, last, energies);
}

}  // namespace
