// Group normalisation with SiLU, and the backward pass of attention, for CPUs: each reads its data once or twice where
// a chain of tensor operations would read and write it ten times. Sums and products are float32, whatever is stored.
//
// vec is sixteen floats; the compiler makes of it the registers that the machine has.

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef float vec __attribute__((vector_size(64)));
typedef int32_t ints __attribute__((vector_size(64)));
typedef uint32_t words __attribute__((vector_size(64)));
typedef uint16_t halves __attribute__((vector_size(32)));

#define INLINE static inline __attribute__((always_inline))
#define LANES 16

INLINE vec all(float value) { return (vec){} + value; }

// brain: bfloat16 (the upper half of a float32, rounded to nearest even) instead of float32
INLINE vec load(int brain, const void *from, int64_t at) {
    vec value;
    if (brain) {
        halves half;
        memcpy(&half, (const uint16_t *)from + at, sizeof half);
        words bits = __builtin_convertvector(half, words) << 16;
        memcpy(&value, &bits, sizeof value);
    } else {
        memcpy(&value, (const float *)from + at, sizeof value);
    }
    return value;
}

INLINE void store(int brain, void *to, int64_t at, vec value) {
    if (brain) {
        words bits;
        memcpy(&bits, &value, sizeof bits);
        words rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
        words nan = (words)(value != value);
        halves half = __builtin_convertvector((rounded & ~nan) | (0x7fc0 & nan), halves);
        memcpy((uint16_t *)to + at, &half, sizeof half);
    } else {
        memcpy((float *)to + at, &value, sizeof value);
    }
}

INLINE float scalar(int brain, const void *from, int64_t at) {
    if (!brain) return ((const float *)from)[at];
    uint32_t bits = (uint32_t)((const uint16_t *)from)[at] << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

INLINE void put(int brain, void *to, int64_t at, float value) {
    if (!brain) { ((float *)to)[at] = value; return; }
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    ((uint16_t *)to)[at] = value != value ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

INLINE vec least(vec a, vec b) { return (vec)(((ints)a & (a < b)) | ((ints)b & ~(a < b))); }
INLINE vec most(vec a, vec b) { return (vec)(((ints)a & (a > b)) | ((ints)b & ~(a > b))); }

// e^x to a few units in the last place, for x from -87 to 87 and beyond held at those
INLINE vec exponential(vec x) {
    x = most(least(x, all(87.0f)), all(-87.0f));
    vec shifted = x * 1.44269504f + 12582912.0f;  // rounds to a whole number, in the lowest bits
    vec whole = shifted - 12582912.0f;
    vec r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    vec sum = all(1.0f / 5040);
    sum = sum * r + 1.0f / 720;
    sum = sum * r + 1.0f / 120;
    sum = sum * r + 1.0f / 24;
    sum = sum * r + 1.0f / 6;
    sum = sum * r + 0.5f;
    sum = sum * r + 1.0f;
    sum = sum * r + 1.0f;
    return (vec)((ints)sum + ((ints)shifted << 23));
}

// 1 / x for x from 1 to 1e38: a guess from the exponent, and Newton's steps
INLINE vec reciprocal(vec x) {
    vec guess = (vec)(0x7ef311c7 - (ints)x);
    guess *= 2.0f - x * guess;
    guess *= 2.0f - x * guess;
    guess *= 2.0f - x * guess;
    return guess;
}

INLINE vec sigmoid(vec z) { return reciprocal(1.0f + exponential(-z)); }

// ---- y = silu((x - mean) rstd scale + shift), x of (batch, positions, channels)
// scale, shift: (batch, channels), or (1, channels) with `step` 0 instead of `channels`.
// A sample is divided into blocks of rows, the same ones for any number of threads, whose sums meet in `partial`
// (batch, blocks, 2, channels).

INLINE int64_t end_of(int64_t block, int64_t rows, int64_t positions) {
    int64_t end = (block + 1) * rows;
    return end < positions ? end : positions;
}

INLINE void forward(int brain, const void *x, void *y, const float *scale, const float *shift, int64_t step, float *mean,
                    float *rstd, float *partial, int64_t batch, int64_t positions, int64_t channels, int64_t groups,
                    int64_t rows, float epsilon, int silu) {
    int64_t blocks = (positions + rows - 1) / rows, size = channels / groups;
#pragma omp for schedule(static)
    for (int64_t task = 0; task < batch * blocks; task++) {
        int64_t b = task / blocks, block = task % blocks, start = b * positions * channels;
        float *sums = partial + task * 2 * channels;
        for (int64_t c = 0; c < channels; c += LANES) {
            vec pivot = load(brain, x, start + c), sum = all(0), squares = all(0);
            for (int64_t row = block * rows; row < end_of(block, rows, positions); row++) {
                vec v = load(brain, x, start + row * channels + c) - pivot;
                sum += v;
                squares += v * v;
            }
            memcpy(sums + c, &sum, sizeof sum);
            memcpy(sums + channels + c, &squares, sizeof squares);
        }
    }
#pragma omp for schedule(static)
    for (int64_t b = 0; b < batch; b++)
        for (int64_t first = 0; first < channels; first += size) {
            double whole = 0, spread = 0;
            for (int pass = 0; pass < 2; pass++)  // the mean of the group, then the squares about it
                for (int64_t c = first; c < first + size; c++) {
                    double sum = 0, squares = 0;
                    for (int64_t block = 0; block < blocks; block++) {
                        sum += partial[(b * blocks + block) * 2 * channels + c];
                        squares += partial[((b * blocks + block) * 2 + 1) * channels + c];
                    }
                    double own = scalar(brain, x, b * positions * channels + c) + sum / positions;
                    if (!pass) whole += own / size;
                    else spread += (squares - sum * sum / positions) / positions + (own - whole) * (own - whole);
                }
            spread = spread < 0 ? 0 : spread / size;
            for (int64_t c = first; c < first + size; c++) {
                mean[b * channels + c] = whole;
                rstd[b * channels + c] = 1 / sqrt(spread + epsilon);
            }
        }
#pragma omp for schedule(static)
    for (int64_t task = 0; task < batch * blocks; task++) {
        int64_t b = task / blocks, block = task % blocks, start = b * positions * channels;
        for (int64_t c = 0; c < channels; c += LANES) {
            vec centre = load(0, mean, b * channels + c), rise = load(0, shift, b * step + c);
            vec slope = load(0, rstd, b * channels + c) * load(0, scale, b * step + c);
            for (int64_t row = block * rows; row < end_of(block, rows, positions); row++) {
                int64_t at = start + row * channels + c;
                vec z = (load(brain, x, at) - centre) * slope + rise;
                store(brain, y, at, silu ? z * sigmoid(z) : z);
            }
        }
    }
}

INLINE vec through_silu(int silu, vec gradient, vec z) {
    if (!silu) return gradient;
    vec s = sigmoid(z);
    return gradient * s * (1.0f + z * (1.0f - s));
}

// from the gradient of y those of x, scale and shift; the latter two (batch, channels)
INLINE void backward(int brain, const void *gradient, const void *x, const float *scale, const float *shift,
                     int64_t step, const float *mean, const float *rstd, float *partial, void *of_x, float *of_scale,
                     float *of_shift, int64_t batch, int64_t positions, int64_t channels, int64_t groups, int64_t rows,
                     int silu) {
    int64_t blocks = (positions + rows - 1) / rows, size = channels / groups;
#pragma omp for schedule(static)
    for (int64_t task = 0; task < batch * blocks; task++) {
        int64_t b = task / blocks, block = task % blocks, start = b * positions * channels;
        float *sums = partial + task * 2 * channels;
        for (int64_t c = 0; c < channels; c += LANES) {
            vec centre = load(0, mean, b * channels + c), inverse = load(0, rstd, b * channels + c);
            vec factor = load(0, scale, b * step + c), rise = load(0, shift, b * step + c);
            vec sum = all(0), products = all(0);
            for (int64_t row = block * rows; row < end_of(block, rows, positions); row++) {
                int64_t at = start + row * channels + c;
                vec normal = (load(brain, x, at) - centre) * inverse;
                vec slope = through_silu(silu, load(brain, gradient, at), normal * factor + rise);
                if (silu) store(brain, of_x, at, slope);  // what follows needs it once more
                sum += slope;
                products += slope * normal;
            }
            memcpy(sums + c, &products, sizeof products);
            memcpy(sums + channels + c, &sum, sizeof sum);
        }
    }
#pragma omp for schedule(static)
    for (int64_t b = 0; b < batch; b++)
        for (int64_t first = 0; first < channels; first += size) {
            double whole = 0, along = 0;
            for (int64_t c = first; c < first + size; c++) {
                double products = 0, sum = 0;
                for (int64_t block = 0; block < blocks; block++) {
                    products += partial[(b * blocks + block) * 2 * channels + c];
                    sum += partial[((b * blocks + block) * 2 + 1) * channels + c];
                }
                of_scale[b * channels + c] = products;
                of_shift[b * channels + c] = sum;
                along += scale[b * step + c] * products;
                whole += scale[b * step + c] * sum;
            }
            for (int64_t c = first; c < first + size; c++) {  // in the place of the sums, which have served
                partial[b * blocks * 2 * channels + c] = along / (positions * size);
                partial[(b * blocks * 2 + 1) * channels + c] = whole / (positions * size);
            }
        }
#pragma omp for schedule(static)
    for (int64_t task = 0; task < batch * blocks; task++) {
        int64_t b = task / blocks, block = task % blocks, start = b * positions * channels;
        for (int64_t c = 0; c < channels; c += LANES) {
            vec centre = load(0, mean, b * channels + c), inverse = load(0, rstd, b * channels + c);
            vec factor = load(0, scale, b * step + c), along = load(0, partial, b * blocks * 2 * channels + c);
            vec whole = load(0, partial, (b * blocks * 2 + 1) * channels + c);
            for (int64_t row = block * rows; row < end_of(block, rows, positions); row++) {
                int64_t at = start + row * channels + c;
                vec normal = (load(brain, x, at) - centre) * inverse;
                vec slope = load(brain, silu ? of_x : gradient, at);
                store(brain, of_x, at, inverse * (factor * slope - whole - normal * along));
            }
        }
    }
}

#define NORMALISATION(name, brain, silu)                                                                               \
    void forward_##name(const void *x, void *y, const float *scale, const float *shift, int64_t step, float *mean,     \
                        float *rstd, float *partial, int64_t batch, int64_t positions, int64_t channels,               \
                        int64_t groups, int64_t rows, float epsilon) {                                                 \
        _Pragma("omp parallel")                                                                                        \
        forward(brain, x, y, scale, shift, step, mean, rstd, partial, batch, positions, channels, groups, rows,        \
                epsilon, silu);                                                                                        \
    }                                                                                                                  \
    void backward_##name(const void *gradient, const void *x, const float *scale, const float *shift, int64_t step,    \
                         const float *mean, const float *rstd, float *partial, void *of_x, float *of_scale,            \
                         float *of_shift, int64_t batch, int64_t positions, int64_t channels, int64_t groups,          \
                         int64_t rows) {                                                                               \
        _Pragma("omp parallel")                                                                                        \
        backward(brain, gradient, x, scale, shift, step, mean, rstd, partial, of_x, of_scale, of_shift, batch,         \
                 positions, channels, groups, rows, silu);                                                             \
    }
NORMALISATION(float32, 0, 0)
NORMALISATION(bfloat16, 1, 0)
NORMALISATION(float32_silu, 0, 1)
NORMALISATION(bfloat16_silu, 1, 1)

// ---- the gradients of softmax(q k^T / sqrt(width)) v, for queries (batch, heads, queries, width), keys and values
// (batch, heads, keys, width). `steps` are the strides of batch, head and row, in elements, of each tensor in the order
// of the arguments. log_sum is that of each row's exponentials (batch, heads, queries). A head's scores are made again,
// ROWS queries and LANES keys at a time, and never stored.
// Keys stand by tile: the first feature of sixteen keys, their second feature, and so on.

typedef float eight __attribute__((vector_size(32)));
#define ROWS 8

typedef struct { int64_t batch, head, row; } Steps;

INLINE int64_t place(const Steps *steps, int64_t b, int64_t h, int64_t row) {
    return b * steps->batch + h * steps->head + row * steps->row;
}

INLINE int64_t tiled(int width, int64_t j, int e) { return j / LANES * LANES * width + e * LANES + j % LANES; }

INLINE void attend_backward(int brain, int width, const void *gradient, const void *q, const void *k, const void *v,
                            const void *out, const float *log_sum, void *of_q, void *of_k, void *of_v,
                            const Steps *steps, int64_t batch, int64_t heads, int64_t queries, int64_t keys,
                            int *failed) {
    int64_t padded = (keys + LANES - 1) / LANES * LANES, plane = width * padded;
    float scale = 1 / sqrtf(width);
    // keys and values by tile, their gradients likewise, and the keys once more by row
    float *scratch = aligned_alloc(64, 5 * plane * sizeof(float));
    if (!scratch) {
#pragma omp atomic write
        *failed = 1;
    }
    float *key = scratch, *value = key + plane, *of_key = value + plane, *of_value = of_key + plane;
    float *key_row = of_value + plane;
#pragma omp for schedule(static)
    for (int64_t task = 0; task < batch * heads; task++) {
        if (!scratch) continue;
        int64_t b = task / heads, h = task % heads;
        memset(scratch, 0, 5 * plane * sizeof(float));
        for (int64_t j = 0; j < keys; j++)
            for (int e = 0; e < width; e++) {
                key_row[j * width + e] = key[tiled(width, j, e)] = scalar(brain, k, place(steps + 2, b, h, j) + e);
                value[tiled(width, j, e)] = scalar(brain, v, place(steps + 3, b, h, j) + e);
            }
        for (int64_t i = 0; i < queries; i += ROWS) {
            float query[ROWS][width], slope[ROWS][width], sum[ROWS], along[ROWS];
            eight of_query[ROWS][width / 8];
            memset(of_query, 0, sizeof of_query);
            for (int row = 0; row < ROWS; row++) {
                int real = i + row < queries;  // those beyond the last weigh nothing and have no gradient
                sum[row] = real ? log_sum[task * queries + i + row] : 1e30f;
                along[row] = 0;
                for (int e = 0; e < width; e++) {
                    query[row][e] = real ? scale * scalar(brain, q, place(steps + 1, b, h, i + row) + e) : 0;
                    slope[row][e] = real ? scalar(brain, gradient, place(steps, b, h, i + row) + e) : 0;
                    if (real) along[row] += slope[row][e] * scalar(brain, out, place(steps + 4, b, h, i + row) + e);
                }
            }
            for (int64_t j = 0; j < padded; j += LANES) {
                vec weight[ROWS], change[ROWS];
                float changes[ROWS][LANES];
                for (int row = 0; row < ROWS; row++) weight[row] = all(-sum[row]), change[row] = all(-along[row]);
                for (int e = 0; e < width; e++) {
                    vec here = load(0, key, j * width + e * LANES), there = load(0, value, j * width + e * LANES);
                    for (int row = 0; row < ROWS; row++) {
                        weight[row] += query[row][e] * here;
                        change[row] += slope[row][e] * there;
                    }
                }
                for (int row = 0; row < ROWS; row++) {
                    weight[row] = exponential(weight[row]);
                    if (j + LANES > keys)
                        for (int lane = keys - j; lane < LANES; lane++) weight[row][lane] = 0;
                    change[row] *= weight[row];
                    store(0, changes[row], 0, change[row]);
                }
                for (int e = 0; e < width; e++) {
                    int64_t at = j * width + e * LANES;
                    vec of_here = load(0, of_key, at), of_there = load(0, of_value, at);
                    for (int row = 0; row < ROWS; row++) {
                        of_here += query[row][e] * change[row];
                        of_there += slope[row][e] * weight[row];
                    }
                    store(0, of_key, at, of_here);
                    store(0, of_value, at, of_there);
                }
                for (int lane = 0; lane < LANES; lane++)
                    for (int part = 0; part < width / 8; part++) {
                        eight here;
                        memcpy(&here, key_row + (j + lane) * width + part * 8, sizeof here);
                        for (int row = 0; row < ROWS; row++) of_query[row][part] += changes[row][lane] * here;
                    }
            }
            for (int row = 0; row < ROWS && i + row < queries; row++)
                for (int e = 0; e < width; e++)
                    put(brain, of_q, place(steps + 5, b, h, i + row) + e, scale * of_query[row][e / 8][e % 8]);
        }
        for (int64_t j = 0; j < keys; j++)
            for (int e = 0; e < width; e++) {
                put(brain, of_k, place(steps + 6, b, h, j) + e, of_key[tiled(width, j, e)]);
                put(brain, of_v, place(steps + 7, b, h, j) + e, of_value[tiled(width, j, e)]);
            }
    }
    free(scratch);
}

#define ATTENTION(name, brain, width)                                                                                  \
    int attend_backward_##name##_##width(const void *gradient, const void *q, const void *k, const void *v,            \
                                         const void *out, const float *log_sum, void *of_q, void *of_k, void *of_v,    \
                                         const Steps *steps, int64_t batch, int64_t heads, int64_t queries,            \
                                         int64_t keys) {                                                               \
        int failed = 0;                                                                                                \
        _Pragma("omp parallel")                                                                                        \
        attend_backward(brain, width, gradient, q, k, v, out, log_sum, of_q, of_k, of_v, steps, batch, heads,          \
                        queries, keys, &failed);                                                                       \
        return failed;                                                                                                 \
    }
// where it is faster than torch's own (docs/performance.md): HEADS in __init__.py
ATTENTION(float32, 0, 8)
ATTENTION(bfloat16, 1, 8)
ATTENTION(bfloat16, 1, 16)
ATTENTION(bfloat16, 1, 32)
