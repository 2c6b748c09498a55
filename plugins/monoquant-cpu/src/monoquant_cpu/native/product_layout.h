// How the columns of a matrix are cut into the vectors of an instruction set, and how its rows are read.
//
// The codes are read as they are stored. A block is one vector of them: 2 * bytes columns, the even ones in the low
// nibbles. A unit is what the inner loops take at once: one or more blocks. All columns of a grain belong to one group,
// so that it has one scale; a unit has one grain or several, each an equal share of its 32-bit lanes.
#pragma once
#include <stdint.h>
#include <string.h>

#include "api.h"

namespace {

constexpr int64_t kWidestGrain = 128;  // also the most columns of x that share one 8-bit scale
constexpr int64_t kFinestGrain = 8;    // columns of a 32-bit lane

inline int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

struct Layout {
    int64_t grain;          // columns: 128, 64, 32 or 8
    int64_t groups;         // per row
    int64_t group_columns;  // from one group to the next; more than the group size if groups have to be moved apart
    bool in_place;          // rows can be read where they are stored
    int64_t unit_columns;
    int64_t units;          // per row
    int64_t columns;        // of all units, at least those of the matrix; x is 0 in those beyond it
    int64_t entries;        // grains per row
};

inline int64_t widest_grain(int64_t group_size) {
    for (int64_t grain = kWidestGrain; grain > kFinestGrain; grain /= 2) {
        if (grain != 16 && group_size % grain == 0) return grain;
    }
    return kFinestGrain;
}

inline Layout make_layout(const mq_matrix &weight, int64_t block_columns) {
    Layout layout;
    layout.groups = (weight.columns + weight.group_size - 1) / weight.group_size;
    const bool one_group = layout.groups == 1;
    layout.in_place = one_group || weight.group_size % kFinestGrain == 0;
    layout.grain = one_group ? kWidestGrain : widest_grain(weight.group_size);
    layout.unit_columns = layout.grain > block_columns ? layout.grain : block_columns;
    layout.group_columns = round_up(weight.group_size, one_group ? layout.grain : kFinestGrain);
    const int64_t used = layout.in_place ? weight.columns : layout.groups * layout.group_columns;
    layout.units = (used + layout.unit_columns - 1) / layout.unit_columns;
    layout.columns = layout.units * layout.unit_columns;
    layout.entries = layout.columns / layout.grain;
    return layout;
}

// The groups of a row of codes, each from a new byte on. What a group's last byte holds besides meets zeros in x.
inline void move_groups_apart(const mq_matrix &weight, const Layout &layout, const uint8_t *row, uint8_t *to) {
    memset(to, 0, layout.columns / 2);
    for (int64_t g = 0; g < layout.groups; ++g, to += layout.group_columns / 2) {
        const int64_t first = g * weight.group_size, left = weight.columns - first;
        const int64_t size = left < weight.group_size ? left : weight.group_size;
        const uint8_t *from = row + first / 2;
        if (first % 2 == 0) {
            memcpy(to, from, (size + 1) / 2);
            continue;
        }
        for (int64_t i = 0; i < size / 2; ++i) to[i] = static_cast<uint8_t>(from[i] >> 4 | from[i + 1] << 4);
        if (size % 2 != 0) to[size / 2] = from[size / 2] >> 4;
    }
}

// The codes of rows first .. first + count - 1, readable for all units: where they are stored if possible, else a copy
// in `scratch`. What is read past the end of a row (codes of the next one) meets zeros in x.
inline void load_codes(const mq_matrix &weight, const Layout &layout, int64_t first, int64_t count, uint8_t *scratch,
                       const uint8_t **codes) {
    const int64_t stride = (weight.columns + 1) / 2, width = layout.columns / 2;
    const uint8_t *row = weight.qweight + first * stride;
    // Rows from which reading `width` does not leave the matrix.
    const int64_t inside = weight.rows - first - (width - stride + stride - 1) / stride;
    int64_t n = 0;
    if (layout.in_place) {
        for (; n < count && n < inside; ++n, row += stride) codes[n] = row;
    }
    for (; n < count; ++n, row += stride, scratch += width) {
        codes[n] = scratch;
        if (!layout.in_place) {
            move_groups_apart(weight, layout, row, scratch);
            continue;
        }
        memcpy(scratch, row, stride);
        memset(scratch + stride, 0, width - stride);
    }
}

}  // namespace
