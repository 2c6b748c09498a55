// Compares the products of every instruction set that this machine has with a plain reference, on odd shapes, with
// buffers of exactly the right size, from several threads and after fork(). Prints a line for each instruction set and
// returns 1 if one is wrong. Meant to be built with -fsanitize=address,undefined or =thread as well:
//   g++ -std=c++17 -O1 -g -pthread check_products.cpp <the objects of ../*.cpp, each with its flags>
// fork() after threads: the thread sanitizer needs TSAN_OPTIONS=die_after_fork=0.
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../api.h"

namespace {

const char *const kNames[MQ_ISA_COUNT] = {"avx2", "avx_vnni", "avx512", "avx512_vnni", "neon"};

struct Random {
    uint64_t state;
    uint32_t next() {
        state = state * 6364136223846793005u + 1442695040888963407u;
        return static_cast<uint32_t>(state >> 33);
    }
    int64_t below(int64_t limit) { return next() % limit; }
    float normal() {
        float sum = 0;
        for (int i = 0; i < 12; ++i) sum += static_cast<float>(next()) / 2147483648.0f;
        return sum - 6;
    }
};

// A matrix with random contents and x, out and bias for it, each in a buffer of its own.
struct Case {
    mq_matrix weight;
    uint8_t *qweight, *zero_point;
    void *scale;
    float *values;  // the dequantized matrix
    float *steps;   // its scales
    float *x, *bias, *out;
    int64_t count, groups;
};

float half_to_float(uint16_t half) {
    const int exponent = half >> 10 & 31, mantissa = half & 1023;
    const float size = exponent == 0 ? ldexpf(mantissa, -24) : ldexpf(1024 + mantissa, exponent - 25);
    return half & 0x8000 ? -size : size;
}

float bfloat_to_float(uint16_t bits) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    memcpy(&value, &wide, sizeof(value));
    return value;
}

float set_scale(Case *c, int64_t i, Random *random) {
    const uint16_t sign = c->zero_point == nullptr && random->below(2) ? 0x8000 : 0;
    if (c->weight.scale_dtype == MQ_FLOAT32) {
        const float value = (sign ? -1 : 1) * (0.01f + 0.001f * random->below(1000) / 1000);
        static_cast<float *>(c->scale)[i] = value;
        return value;
    }
    uint16_t bits;
    if (c->weight.scale_dtype == MQ_FLOAT16) {
        const int64_t subnormal = 1 + random->below(1023), normal = 0x2000 + random->below(1024);
        bits = static_cast<uint16_t>(sign | (random->below(8) == 0 ? subnormal : normal));
        static_cast<uint16_t *>(c->scale)[i] = bits;
        return half_to_float(bits);
    }
    bits = static_cast<uint16_t>(sign | (0x3c00 + random->below(128)));
    static_cast<uint16_t *>(c->scale)[i] = bits;
    return bfloat_to_float(bits);
}

void fill_matrix(Case *c, Random *random) {
    const int64_t rows = c->weight.rows, columns = c->weight.columns, stride = (columns + 1) / 2;
    for (int64_t i = 0; i < rows * stride; ++i) c->qweight[i] = static_cast<uint8_t>(random->next() >> 8);
    for (int64_t i = 0; c->zero_point != nullptr && i < (rows * c->groups + 1) / 2; ++i) {
        c->zero_point[i] = static_cast<uint8_t>(random->next() >> 8);
    }
    for (int64_t n = 0; n < rows; ++n) {
        for (int64_t g = 0; g < c->groups; ++g) {
            const int64_t i = n * c->groups + g;
            const float scale = set_scale(c, i, random);
            c->steps[i] = fabsf(scale);
            const int zero = c->zero_point == nullptr ? 8 : c->zero_point[i / 2] >> (i % 2 * 4) & 15;
            for (int64_t k = g * c->weight.group_size; k < columns && k < (g + 1) * c->weight.group_size; ++k) {
                const int code = c->qweight[n * stride + k / 2] >> (k % 2 * 4) & 15;
                c->values[n * columns + k] = (code - zero) * scale;
            }
        }
    }
}

Case make_case(int64_t rows, int64_t columns, int64_t group_size, int64_t count, bool symmetric, int32_t dtype,
               Random *random) {
    Case c;
    c.count = count;
    c.groups = (columns + group_size - 1) / group_size;
    c.qweight = static_cast<uint8_t *>(malloc(rows * ((columns + 1) / 2)));
    c.zero_point = symmetric ? nullptr : static_cast<uint8_t *>(malloc((rows * c.groups + 1) / 2));
    c.scale = malloc(rows * c.groups * (dtype == MQ_FLOAT32 ? 4 : 2));
    c.values = static_cast<float *>(malloc(sizeof(float) * rows * columns));
    c.steps = static_cast<float *>(malloc(sizeof(float) * rows * c.groups));
    c.x = static_cast<float *>(malloc(sizeof(float) * count * columns));
    c.bias = random->below(2) ? static_cast<float *>(malloc(sizeof(float) * rows)) : nullptr;
    c.out = static_cast<float *>(malloc(sizeof(float) * count * rows));
    c.weight = {c.qweight, c.scale, c.zero_point, rows, columns, group_size, dtype};
    fill_matrix(&c, random);
    const float size = random->below(4) == 0 ? 1e30f : 1;
    for (int64_t i = 0; i < count * columns; ++i) c.x[i] = size * random->normal();
    for (int64_t n = 0; c.bias != nullptr && n < rows; ++n) c.bias[n] = random->normal();
    return c;
}

void free_case(Case *c) {
    void *const buffers[] = {c->qweight, c->zero_point, c->scale, c->values, c->steps, c->x, c->bias, c->out};
    for (void *buffer : buffers) free(buffer);
}

bool multiply(int32_t isa, bool int8, const Case &c, float *out, int32_t threads) {
    const auto product = int8 ? mq_product_int8 : mq_product_float;
    for (int64_t i = 0; i < c.count * c.weight.rows; ++i) out[i] = NAN;
    return product(isa, &c.weight, c.x, c.count, c.bias, out, threads) == MQ_OK;
}

// How far output (m, n) may be off: float32 rounding of the sum (and of zero_point * scale * x, where that is a term of
// its own), and for int8 half a step of x in each term.
double tolerance(const Case &c, bool int8, int64_t m, int64_t n) {
    const int64_t columns = c.weight.columns;
    double sum = c.bias != nullptr ? fabs(c.bias[n]) : 0, rounding = 0;
    for (int64_t g = 0; g < c.groups; ++g) {
        double largest = 0, weights = 0;
        for (int64_t k = g * c.weight.group_size; k < columns && k < (g + 1) * c.weight.group_size; ++k) {
            const double x = fabs(c.x[m * columns + k]), w = fabs(c.values[n * columns + k]);
            if (x > largest) largest = x;
            weights += w;
            sum += x * (int8 || c.weight.scale_dtype == MQ_FLOAT32 ? w + 15 * c.steps[n * c.groups + g] : w);
        }
        rounding += weights * largest / 254;
    }
    return 2e-6 * sum + (int8 ? 1.001 * rounding : 0) + 1e-30;
}

bool is_right(const Case &c, bool int8, const float *out) {
    const int64_t columns = c.weight.columns;
    for (int64_t m = 0; m < c.count; ++m) {
        for (int64_t n = 0; n < c.weight.rows; ++n) {
            double exact = c.bias != nullptr ? c.bias[n] : 0;
            for (int64_t k = 0; k < columns; ++k) {
                exact += static_cast<double>(c.x[m * columns + k]) * c.values[n * columns + k];
            }
            const float found = out[m * c.weight.rows + n];
            if (fabs(found - exact) <= tolerance(c, int8, m, n)) continue;
            printf("  %s: rows %lld columns %lld group %lld count %lld dtype %d symmetric %d: ",
                   int8 ? "int8" : "float", (long long)c.weight.rows, (long long)columns,
                   (long long)c.weight.group_size, (long long)c.count, c.weight.scale_dtype, c.zero_point == nullptr);
            printf("[%lld, %lld] is %g, not %g\n", (long long)m, (long long)n, found, exact);
            return false;
        }
    }
    return true;
}

// Nan or inf in one row of x: int8 makes all of that row nan, and nothing else changes.
bool contains_nan(int32_t isa, Case *c, Random *random) {
    const int64_t rows = c->weight.rows, columns = c->weight.columns, bad = random->below(c->count);
    float *before = static_cast<float *>(malloc(sizeof(float) * c->count * rows));
    bool right = multiply(isa, true, *c, before, 1);
    float *const victim = c->x + bad * columns + random->below(columns), was = *victim;
    *victim = random->below(2) ? NAN : -INFINITY;
    right = right && multiply(isa, true, *c, c->out, 1);
    for (int64_t i = 0; i < c->count * rows; ++i) {
        right = right && (i / rows == bad ? isnan(c->out[i]) : c->out[i] == before[i]);
    }
    *victim = was;
    free(before);
    if (!right) printf("  a nan in row %lld of x is not in its outputs alone\n", (long long)bad);
    return right;
}

bool same_for_threads(int32_t isa, bool int8, const Case &c) {
    const size_t size = sizeof(float) * c.count * c.weight.rows;
    float *alone = static_cast<float *>(malloc(size));
    bool right = multiply(isa, int8, c, alone, 1) && multiply(isa, int8, c, c.out, 3);
    right = right && memcmp(alone, c.out, size) == 0;
    free(alone);
    if (!right) printf("  three threads and one differ\n");
    return right;
}

bool check_shapes(int32_t isa, int cases, Random *random) {
    const int64_t columns[] = {1, 2, 7, 31, 64, 65, 127, 128, 200, 255, 256, 384, 520, 1031, 2100, 4096};
    const int64_t groups[] = {1, 2, 3, 8, 24, 32, 33, 48, 64, 96, 100, 128, 192, 256, 1 << 20};
    const int64_t counts[] = {1, 1, 2, 3, 4, 5, 7, 8, 9, 13, 17, 33};
    bool right = true;
    for (int i = 0; i < cases && right; ++i) {
        const int64_t width = columns[random->below(16)], group = groups[random->below(15)];
        Case c = make_case(1 + random->below(70), width, group < width ? group : width, counts[random->below(12)],
                           random->below(2), static_cast<int32_t>(random->below(3)), random);
        for (int int8 = 0; int8 < 2 && right; ++int8) {
            right = multiply(isa, int8, c, c.out, 1) && is_right(c, int8, c.out) && same_for_threads(isa, int8, c);
        }
        right = right && contains_nan(isa, &c, random);
        free_case(&c);
    }
    return right;
}

struct Caller {
    int32_t isa;
    uint64_t seed;
    bool right;
};

// Shapes large enough for several threads.
void *call_in_parallel(void *context) {
    Caller *caller = static_cast<Caller *>(context);
    Random random = {caller->seed};
    Case c = make_case(520, 1030, 128, 12, false, MQ_FLOAT16, &random);
    caller->right = true;
    for (int i = 0; i < 10; ++i) {
        const bool int8 = i % 2;
        caller->right = caller->right && multiply(caller->isa, int8, c, c.out, 3) && is_right(c, int8, c.out);
    }
    free_case(&c);
    return nullptr;
}

bool check_threads(int32_t isa) {
    Caller callers[3];
    pthread_t threads[3];
    bool right = true;
    for (int i = 0; i < 3; ++i) {
        callers[i] = {isa, static_cast<uint64_t>(i + 1), false};
        pthread_create(&threads[i], nullptr, call_in_parallel, &callers[i]);
    }
    for (int i = 0; i < 3; ++i) {
        pthread_join(threads[i], nullptr);
        right = right && callers[i].right;
    }
    if (!right) printf("  wrong when called from several threads\n");
    return right;
}

bool check_fork(int32_t isa) {
    const pid_t child = fork();
    if (child == 0) {
        Caller caller = {isa, 9, false};
        call_in_parallel(&caller);
        _exit(caller.right ? 0 : 1);
    }
    int status = 1;
    waitpid(child, &status, 0);
    if (status != 0) printf("  wrong after fork\n");
    return status == 0;
}

}  // namespace

int main(int argc, char **argv) {
    const int cases = argc > 1 ? atoi(argv[1]) : 150;
    int failures = 0, checked = 0;
    for (int32_t isa = 0; isa < MQ_ISA_COUNT; ++isa) {
        if (!mq_supports(isa)) {
            printf("%s: not here\n", kNames[isa]);
            continue;
        }
        Random random = {static_cast<uint64_t>(isa) + 1};
        const bool right = check_shapes(isa, cases, &random) && check_threads(isa) && check_fork(isa);
        printf("%s: %s\n", kNames[isa], right ? "right" : "WRONG");
        failures += !right;
        ++checked;
    }
    return failures != 0 || checked == 0;
}
