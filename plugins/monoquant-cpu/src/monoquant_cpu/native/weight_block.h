// A block of rows of a weight, ready for the kernels.
#pragma once
#include "product_layout.h"
#include "product_scales.h"

namespace {

constexpr int kMaxBlockRows = 64;

struct WeightBlock {
    int64_t rows, entries;
    const uint8_t *codes[kMaxBlockRows];
    const float *scale, *offset;  // [rows, entries]

    // Rows past the last are the last one again, so that kernels can take a fixed number at once.
    int64_t clamp(int64_t row) const { return row < rows ? row : rows - 1; }
};

inline int64_t block_bytes(const Layout &layout, int64_t rows) {
    return (2 * sizeof(float) * layout.entries + layout.columns / 2) * rows;
}

// `offset_factor`: see load_tables. `scratch` of block_bytes for `max_rows`.
template <class Simd>
inline void load_block(const mq_matrix &weight, const Layout &layout, int64_t first, int64_t max_rows,
                       float offset_factor, char *scratch, WeightBlock *block) {
    float *scale = reinterpret_cast<float *>(scratch), *offset = scale + layout.entries * max_rows;
    uint8_t *codes = reinterpret_cast<uint8_t *>(offset + layout.entries * max_rows);
    block->rows = weight.rows - first < max_rows ? weight.rows - first : max_rows;
    block->entries = layout.entries;
    block->scale = scale;
    block->offset = offset;
    load_codes(weight, layout, first, block->rows, codes, block->codes);
    load_tables<Simd>(weight, layout, first, block->rows, offset_factor, scale, offset);
}

template <int ROWS>
struct WeightRows {
    const uint8_t *codes[ROWS];
    const float *scale[ROWS], *offset[ROWS];

    static WeightRows of(const WeightBlock &block, int64_t n) {
        WeightRows rows;
        for (int i = 0; i < ROWS; ++i) {
            const int64_t row = block.clamp(n + i);
            rows.codes[i] = block.codes[row];
            rows.scale[i] = block.scale + row * block.entries;
            rows.offset[i] = block.offset + row * block.entries;
        }
        return rows;
    }
};

// Rows are short and the processor's own prefetching starts anew with each: ask for codes two pages ahead.
inline void prefetch(const uint8_t *codes) { __builtin_prefetch(codes + 8192); }

// The same columns of the rows that come `rows` later. To the second-level cache: a panel is used before the next one.
inline void prefetch_rows(const Layout &layout, const uint8_t *codes, int64_t rows) {
    __builtin_prefetch(codes + rows * layout.columns / 2, 0, 2);
}

// Scales and offsets of the grains of columns first .. end - 1, for ROWS rows side by side: [grains, ROWS].
template <int ROWS, int GRAIN>
inline void gather_tables(const WeightBlock &block, int64_t n, int64_t first, int64_t end, float *scale,
                          float *offset) {
    const int64_t grains = (end - first) / GRAIN;
    for (int row = 0; row < ROWS; ++row) {
        const int64_t from = block.clamp(n + row) * block.entries + first / GRAIN;
        for (int64_t e = 0; e < grains; ++e) {
            scale[e * ROWS + row] = block.scale[from + e];
            offset[e * ROWS + row] = block.offset[from + e];
        }
    }
}

// As few tiles as possible for `left` rows of x, of about the same size.
inline int even_tile(int64_t left, int largest) {
    const int64_t tiles = (left + largest - 1) / largest;
    return static_cast<int>((left + tiles - 1) / tiles);
}

// sums[m, v] += total, or = if it is the first.
template <class Simd, int COUNT>
inline void add_to_sums(const typename Simd::Floats (&total)[COUNT][Simd::kPanelVectors], bool is_first, float *sums) {
    for (int m = 0; m < COUNT; ++m) {
        for (int v = 0; v < Simd::kPanelVectors; ++v, sums += Simd::kLanes) {
            Simd::store(sums, is_first ? total[m][v] : Simd::add(Simd::load(sums), total[m][v]));
        }
    }
}

}  // namespace
