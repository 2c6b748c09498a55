// mq_quantize against the definition of round_to_nearest, written down a second time, value by value. Every buffer is a
// heap block of exactly the size that api.h names, so that a sanitizer sees what is read or written beyond it.
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../api.h"

namespace {

struct Case {
    int64_t rows, columns, gap, group_size;
    int32_t dtype, scale_dtype, symmetric, threads;
    double magnitude, offset;
    bool whole;  // values are multiples of magnitude / 15: their range may be one of a scale, too
};

uint64_t state = 1;

double random_unit() {  // in -1..1
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<double>(state >> 11) * 0x1p-52 - 1;
}

double value_of(uint32_t bits, int32_t dtype) {
    if (dtype == MQ_FLOAT16) {
        const int exponent = bits >> 10 & 31, fraction = bits & 1023;
        if (exponent == 31) return INFINITY;
        const double value = exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24);
        return bits >> 15 ? -value : value;
    }
    if (dtype == MQ_BFLOAT16) bits <<= 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

int64_t width_of(int32_t dtype) { return dtype == MQ_FLOAT32 ? 4 : 2; }

uint32_t sign_of(int32_t dtype) { return dtype == MQ_FLOAT32 ? 1u << 31 : 1u << 15; }

uint32_t infinity_of(int32_t dtype) {
    return dtype == MQ_FLOAT32 ? 0x7F800000 : dtype == MQ_FLOAT16 ? 0x7C00 : 0x7F80;
}

// Bits of the smallest number of this dtype that is >= value, which is >= 0: they are in the numbers' order.
uint32_t bits_above(double value, int32_t dtype) {
    uint32_t low = 0, high = infinity_of(dtype);
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        if (value_of(middle, dtype) >= value) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low;
}

double read(const void *numbers, int64_t index, int32_t dtype) {
    uint32_t bits = 0;
    memcpy(&bits, static_cast<const char *>(numbers) + index * width_of(dtype), width_of(dtype));
    return value_of(bits, dtype);
}

void write(void *numbers, int64_t index, int32_t dtype, uint32_t bits) {
    memcpy(static_cast<char *>(numbers) + index * width_of(dtype), &bits, width_of(dtype));
}

void set_nibble(uint8_t *bytes, int64_t index, int code) {
    bytes[index / 2] = static_cast<uint8_t>(bytes[index / 2] | code << (index % 2 * 4));
}

// Which sign and magnitude a group's scale has before it is rounded.
double exact_scale(double low, double high, bool symmetric) {
    if (!symmetric) return high / 15 - low / 15;
    if (-low >= high) return fmax(-low / 8, high / 7.5);
    return -fmax(high / 8, -low / 7.5);
}

void expect_group(const mq_quantize_task &task, int64_t row, int64_t group) {
    const int64_t groups = (task.columns + task.group_size - 1) / task.group_size;
    const int64_t start = group * task.group_size, index = row * groups + group;
    const int64_t end = start + task.group_size < task.columns ? start + task.group_size : task.columns;
    double low = 0, high = 0;
    for (int64_t k = start; k < end; ++k) {
        const double value = read(task.values, row * task.row_stride + k, task.dtype);
        low = fmin(low, value);
        high = fmax(high, value);
    }
    double exact = exact_scale(low, high, task.symmetric);
    if (exact == 0) exact = 1;
    const uint32_t bits = bits_above(fabs(exact), task.scale_dtype) | (exact < 0 ? sign_of(task.scale_dtype) : 0);
    write(task.scale, index, task.scale_dtype, bits);
    const float step = static_cast<float>(copysign(read(task.scale, index, task.scale_dtype), exact));
    const float zero = task.symmetric ? 8 : static_cast<float>(nearbyint(-low / step));
    if (!task.symmetric) set_nibble(task.zero_point, index, static_cast<int>(zero));
    for (int64_t k = start; k < end; ++k) {
        const float value = static_cast<float>(read(task.values, row * task.row_stride + k, task.dtype));
        const float code = fminf(fmaxf(nearbyintf(value / step) + zero, 0), 15);
        set_nibble(task.qweight + row * ((task.columns + 1) / 2), k, static_cast<int>(code));
        const float error = value - (code - zero) * step;
        task.energies[0] += static_cast<double>(value) * value;
        task.energies[1] += static_cast<double>(error) * error;
    }
}

void *zeros(int64_t bytes) { return calloc(static_cast<size_t>(bytes), 1); }

struct Outputs {
    int64_t qweight_size, scale_size, zero_point_size;
    uint8_t *qweight, *zero_point;
    void *scale;
    double energies[2] = {0, 0};

    explicit Outputs(const Case &c) {
        const int64_t groups = c.rows * ((c.columns + c.group_size - 1) / c.group_size);
        qweight_size = c.rows * ((c.columns + 1) / 2);
        scale_size = groups * width_of(c.scale_dtype);
        zero_point_size = c.symmetric ? 0 : (groups + 1) / 2;
        qweight = static_cast<uint8_t *>(zeros(qweight_size));
        scale = zeros(scale_size);
        zero_point = static_cast<uint8_t *>(zeros(zero_point_size));
    }
    Outputs(const Outputs &) = delete;

    ~Outputs() {
        free(qweight);
        free(scale);
        free(zero_point);
    }

    mq_quantize_task task(const Case &c, const void *values) {
        return {values,        c.rows,      c.columns, c.columns + c.gap,
                c.group_size,  c.dtype,     c.scale_dtype, c.symmetric,
                qweight,       scale,       c.symmetric ? nullptr : zero_point, energies};
    }

    void spoil() {  // whatever was there before must not show
        memset(qweight, 0xA5, static_cast<size_t>(qweight_size));
        memset(scale, 0xA5, static_cast<size_t>(scale_size));
        memset(zero_point, 0xA5, static_cast<size_t>(zero_point_size));
    }

    bool equals(const Outputs &other) const {
        return memcmp(qweight, other.qweight, static_cast<size_t>(qweight_size)) == 0 &&
               memcmp(scale, other.scale, static_cast<size_t>(scale_size)) == 0 &&
               memcmp(zero_point, other.zero_point, static_cast<size_t>(zero_point_size)) == 0;
    }
};

bool near(double found, double expected) {
    return found == expected || (isnan(found) && isnan(expected)) || fabs(found - expected) <= 1e-12 * expected;
}

void *random_values(const Case &c) {
    const int64_t count = (c.rows - 1) * (c.columns + c.gap) + c.columns;
    void *values = malloc(static_cast<size_t>(count * width_of(c.dtype)));
    for (int64_t i = 0; i < count; ++i) {
        const double unit = random_unit() + c.offset;
        const double value = c.magnitude * (c.whole ? nearbyint(unit * 15) / 15 : unit);
        const uint32_t bits = bits_above(fabs(value), c.dtype);
        const bool fits = bits < infinity_of(c.dtype) && random_unit() < .8;  // some zeros
        write(values, i, c.dtype, fits ? bits | (value < 0 ? sign_of(c.dtype) : 0) : 0);
    }
    return values;
}

bool check(const Case &c) {
    void *values = random_values(c);
    Outputs expected(c);
    const mq_quantize_task definition = expected.task(c, values);
    const int64_t groups = (c.columns + c.group_size - 1) / c.group_size;
    for (int64_t row = 0; row < c.rows; ++row) {
        for (int64_t group = 0; group < groups; ++group) expect_group(definition, row, group);
    }
    bool all = true;
    for (int32_t isa = 0; isa < MQ_ISA_COUNT; ++isa) {
        if (!mq_supports(isa)) continue;
        for (int measured = 0; measured < 2; ++measured) {
            Outputs found(c);
            found.spoil();
            mq_quantize_task task = found.task(c, values);
            if (!measured) task.energies = nullptr;
            const int32_t status = mq_quantize(isa, &task, c.threads);
            const bool summed = !measured || (near(found.energies[0], expected.energies[0]) &&
                                              near(found.energies[1], expected.energies[1]));
            if (status == MQ_OK && found.equals(expected) && summed) continue;
            fprintf(stderr, "isa %d, %lld x %lld (+%lld), groups of %lld, dtypes %d %d, symmetric %d, %g: status %d, energies %g %g not %g %g\n",
                    isa, (long long)c.rows, (long long)c.columns, (long long)c.gap, (long long)c.group_size, c.dtype,
                    c.scale_dtype, c.symmetric, c.magnitude, status, found.energies[0], found.energies[1],
                    expected.energies[0], expected.energies[1]);
            all = false;
        }
    }
    free(values);
    return all;
}

bool check_refusals() {
    float value = 1, scale = 0;
    uint8_t code = 0, zero = 0;
    const mq_quantize_task good = {&value, 1, 1, 1, 1, MQ_FLOAT32, MQ_FLOAT32, 0, &code, &scale, &zero, nullptr};
    mq_quantize_task bad[9] = {good, good, good, good, good, good, good, good, good};
    bad[0].rows = 0;
    bad[1].columns = 0;
    bad[2].group_size = 2;
    bad[3].group_size = 0;
    bad[4].dtype = 3;
    bad[5].scale_dtype = -1;
    bad[6].zero_point = nullptr;
    bad[7].values = nullptr;
    bad[8].scale = nullptr;
    bool all = mq_quantize(MQ_ISA_COUNT, &good, 1) == MQ_NO_SUCH_ISA && mq_quantize(-1, &good, 1) == MQ_NO_SUCH_ISA;
    for (int32_t isa = 0; isa < MQ_ISA_COUNT; ++isa) {
        if (!mq_supports(isa)) continue;
        for (const mq_quantize_task &task : bad) all = all && mq_quantize(isa, &task, 1) == MQ_BAD_ARGUMENT;
        all = all && mq_quantize(isa, &good, 0) == MQ_BAD_ARGUMENT && mq_quantize(isa, nullptr, 1) == MQ_BAD_ARGUMENT;
        all = all && mq_quantize(isa, &good, 1) == MQ_OK;
    }
    if (!all) fprintf(stderr, "a wrong argument was not refused\n");
    return all;
}

bool check_any(int64_t rows, int64_t columns, int64_t group_size) {
    const double magnitudes[] = {0, 15, 1e-44, 1e-7, 1e6, 3e38}, offsets[] = {0, 2, -2, .1};
    bool all = true;
    for (int32_t dtypes = 0; dtypes < 9; ++dtypes) {
        for (int kind = 0; kind < 12; ++kind) {
            const Case c = {rows,       columns,    kind % 3,  group_size,
                            dtypes / 3, dtypes % 3, kind % 2, 1 + kind % 4,
                            magnitudes[kind % 6], offsets[kind % 4], kind > 5};
            all = check(c) && all;
        }
    }
    return all;
}

}  // namespace

int main() {
    bool any = false;
    for (int32_t isa = 0; isa < MQ_ISA_COUNT; ++isa) any = any || mq_supports(isa);
    if (!any) {
        puts("this CPU has no instruction set that there are kernels for");
        return 77;  // skipped, as automake has it
    }
    bool all = check_refusals();
    const int64_t columns[] = {1, 2, 3, 31, 32, 33, 64, 65, 97, 128, 200, 257};
    const int64_t groups[] = {1, 2, 3, 5, 31, 32, 33, 48, 64, 128, 257};
    for (const int64_t width : columns) {
        for (const int64_t group : groups) {
            if (group <= width) all = check_any(1 + (width + group) % 4, width, group) && all;
        }
    }
    // Many portions, for several threads; each row has an odd number of groups.
    all = check({4001, 66, 1, 32, MQ_FLOAT32, MQ_FLOAT16, 0, 4, 1, 0, false}) && all;
    all = check({4, 140100, 0, 128, MQ_BFLOAT16, MQ_BFLOAT16, 0, 4, 1, 0, false}) && all;
    puts(all ? "ok" : "FAILED");
    return all ? 0 : 1;
}
