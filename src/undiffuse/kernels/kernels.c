// Group normalisation with SiLU, and the backward pass of attention, for CPUs: each reads its data once or twice where
// a chain of tensor operations would read and write it ten times. Sums and products are float32, whatever is stored.
//
// vec is sixteen floats; the compiler makes of it the registers that the machine has.

#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

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
#ifdef __AVX512BF16__
        __m256bh half = _mm512_cvtneps_pbh((__m512)value);
#else
        words bits;
        memcpy(&bits, &value, sizeof bits);
        words rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
        words nan = (words)(value != value);
        halves half = __builtin_convertvector((rounded & ~nan) | (0x7fc0 & nan), halves);
#endif
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

// e^x for x from -87 to 87, and beyond held at those: to a few units in the last place, of bfloat16 where `brain` is set
INLINE vec exponential(int brain, vec x) {
    x = most(least(x, all(87.0f)), all(-87.0f));
    vec shifted = x * 1.44269504f + 12582912.0f;  // rounds to a whole number, in the lowest bits
    vec whole = shifted - 12582912.0f;
    vec r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    vec sum = all(1.0f / 24);
    if (!brain) {
        sum += r * (1.0f / 120 + r * (1.0f / 720 + r * (1.0f / 5040)));
    }
    sum = sum * r + 1.0f / 6;
    sum = sum * r + 0.5f;
    sum = sum * r + 1.0f;
    sum = sum * r + 1.0f;
    return (vec)((ints)sum + ((ints)shifted << 23));
}

// 1 / x for x from 1 to 1e38: a guess from the exponent, and Newton's steps, each of which doubles the digits
INLINE vec reciprocal(int brain, vec x) {
    vec guess = (vec)(0x7ef311c7 - (ints)x);
    for (int step = 0; step < (brain ? 2 : 3); step++) guess *= 2.0f - x * guess;
    return guess;
}

INLINE vec sigmoid(int brain, vec z) { return reciprocal(brain, 1.0f + exponential(brain, -z)); }

// ---- y = silu((x - mean) rstd scale + shift), x of (batch, positions, channels)
// scale, shift: (batch, channels), or (1, channels) with `step` 0 instead of `channels`.
// A sample is divided into blocks of rows, whose sums meet in `partial` (batch, blocks, 2, channels).

// what both passes are told of a layer
typedef struct {
    const void *x;
    const float *scale, *shift;
    float *mean, *rstd, *partial;  // mean and rstd: (batch, channels), of each channel's group
    int64_t step, batch, positions, channels, groups, rows;
    float epsilon;
} Layer;

INLINE int64_t blocks_of(const Layer *l) { return (l->positions + l->rows - 1) / l->rows; }

INLINE int64_t end_of(const Layer *l, int64_t block) {
    int64_t end = (block + 1) * l->rows;
    return end < l->positions ? end : l->positions;
}

INLINE float *sums_of(const Layer *l, int64_t b, int64_t block) {
    return l->partial + (b * blocks_of(l) + block) * 2 * l->channels;
}

// a block's means, and the squares about them
INLINE void block_moments(int brain, const Layer *l, int64_t b, int64_t block) {
    float *sums = sums_of(l, b, block);
    int64_t first = block * l->rows, end = end_of(l, block);
    for (int64_t c = 0; c < l->channels; c += LANES) {
        vec mean = all(0), squares = all(0);
        for (int64_t row = first; row < end; row++) mean += load(brain, l->x, (b * l->positions + row) * l->channels + c);
        mean /= (float)(end - first);
        for (int64_t row = first; row < end; row++) {
            vec v = load(brain, l->x, (b * l->positions + row) * l->channels + c) - mean;
            squares += v * v;
        }
        store(0, sums, c, mean);
        store(0, sums, l->channels + c, squares);
    }
}

// blocks and channels of a group joined (Chan, Golub & LeVeque 1979)
INLINE void moments(const Layer *l, int64_t b) {
    int64_t size = l->channels / l->groups, start = b * l->channels;
    for (int64_t first = 0; first < l->channels; first += size) {
        double mean = 0, squares = 0, count = (double)(l->positions * size);
        for (int pass = 0; pass < 2; pass++)
            for (int64_t c = first; c < first + size; c++)
                for (int64_t block = 0; block < blocks_of(l); block++) {
                    double own = sums_of(l, b, block)[c], rows = (double)(end_of(l, block) - block * l->rows);
                    if (!pass) mean += own * rows / count;
                    else squares += sums_of(l, b, block)[l->channels + c] + rows * (own - mean) * (own - mean);
                }
        for (int64_t c = first; c < first + size; c++) {
            l->mean[start + c] = mean;
            l->rstd[start + c] = 1 / sqrt(squares / count + l->epsilon);
        }
    }
}

INLINE void block_output(int brain, int silu, const Layer *l, void *y, int64_t b, int64_t block) {
    for (int64_t c = 0; c < l->channels; c += LANES) {
        int64_t here = b * l->channels + c;
        vec centre = load(0, l->mean, here), rise = load(0, l->shift, b * l->step + c);
        vec slope = load(0, l->rstd, here) * load(0, l->scale, b * l->step + c);
        for (int64_t row = block * l->rows; row < end_of(l, block); row++) {
            int64_t at = (b * l->positions + row) * l->channels + c;
            vec z = (load(brain, l->x, at) - centre) * slope + rise;
            store(brain, y, at, silu ? z * sigmoid(brain, z) : z);
        }
    }
}

// the sums of the gradient behind the activation, and of its products with the normalised x; it is kept in of_x
INLINE void block_slopes(int brain, int silu, const Layer *l, const void *gradient, void *of_x, int64_t b,
                         int64_t block) {
    float *sums = sums_of(l, b, block);
    for (int64_t c = 0; c < l->channels; c += LANES) {
        int64_t here = b * l->channels + c;
        vec centre = load(0, l->mean, here), inverse = load(0, l->rstd, here);
        vec factor = load(0, l->scale, b * l->step + c), rise = load(0, l->shift, b * l->step + c);
        vec sum = all(0), products = all(0);
        for (int64_t row = block * l->rows; row < end_of(l, block); row++) {
            int64_t at = (b * l->positions + row) * l->channels + c;
            vec normal = (load(brain, l->x, at) - centre) * inverse, slope = load(brain, gradient, at);
            if (silu) {
                vec z = normal * factor + rise, s = sigmoid(brain, z);
                slope *= s * (1.0f + z * (1.0f - s));
                store(brain, of_x, at, slope);
            }
            sum += slope;
            products += slope * normal;
        }
        store(0, sums, c, products);
        store(0, sums, l->channels + c, sum);
    }
}

INLINE void slopes(const Layer *l, float *of_scale, float *of_shift, int64_t b) {
    int64_t size = l->channels / l->groups, start = b * l->channels;
    for (int64_t first = 0; first < l->channels; first += size) {
        double along = 0, whole = 0;
        for (int64_t c = first; c < first + size; c++) {
            double products = 0, sum = 0;
            for (int64_t block = 0; block < blocks_of(l); block++) {
                products += sums_of(l, b, block)[c];
                sum += sums_of(l, b, block)[l->channels + c];
            }
            of_scale[start + c] = products;
            of_shift[start + c] = sum;
            along += l->scale[b * l->step + c] * products;
            whole += l->scale[b * l->step + c] * sum;
        }
        for (int64_t c = first; c < first + size; c++) {  // in the place of the first block's sums, which have served
            sums_of(l, b, 0)[c] = along / (l->positions * size);
            sums_of(l, b, 0)[l->channels + c] = whole / (l->positions * size);
        }
    }
}

INLINE void block_gradient(int brain, int silu, const Layer *l, const void *gradient, void *of_x, int64_t b,
                           int64_t block) {
    for (int64_t c = 0; c < l->channels; c += LANES) {
        int64_t here = b * l->channels + c;
        vec centre = load(0, l->mean, here), inverse = load(0, l->rstd, here);
        vec factor = load(0, l->scale, b * l->step + c);
        vec along = load(0, sums_of(l, b, 0), c), whole = load(0, sums_of(l, b, 0), l->channels + c);
        for (int64_t row = block * l->rows; row < end_of(l, block); row++) {
            int64_t at = (b * l->positions + row) * l->channels + c;
            vec normal = (load(brain, l->x, at) - centre) * inverse;
            vec slope = load(brain, silu ? of_x : gradient, at);
            store(brain, of_x, at, inverse * (factor * slope - whole - normal * along));
        }
    }
}

// A sample stays with a thread, and in its cache, from the first pass to the last; where there are fewer samples than
// threads, the blocks of a sample are shared out instead. The sums are the same in both ways.
#define IN_THREE_PASSES(over_block, over_sample, over_block_again)                                                     \
    int64_t blocks = blocks_of(l);                                                                                     \
    if (l->batch >= omp_get_num_threads()) {                                                                           \
        _Pragma("omp for schedule(static)")                                                                            \
        for (int64_t b = 0; b < l->batch; b++) {                                                                       \
            for (int64_t block = 0; block < blocks; block++) over_block;                                               \
            over_sample;                                                                                               \
            for (int64_t block = 0; block < blocks; block++) over_block_again;                                         \
        }                                                                                                              \
    } else {                                                                                                           \
        for (int64_t b = 0; b < l->batch; b++) {                                                                       \
            _Pragma("omp for schedule(static)")                                                                        \
            for (int64_t block = 0; block < blocks; block++) over_block;                                               \
            _Pragma("omp single")                                                                                      \
            over_sample;                                                                                               \
            _Pragma("omp for schedule(static)")                                                                        \
            for (int64_t block = 0; block < blocks; block++) over_block_again;                                         \
        }                                                                                                              \
    }

INLINE void forward(int brain, int silu, const Layer *l, void *y) {
    IN_THREE_PASSES(block_moments(brain, l, b, block), moments(l, b), block_output(brain, silu, l, y, b, block))
}

INLINE void backward(int brain, int silu, const Layer *l, const void *gradient, void *of_x, float *of_scale,
                     float *of_shift) {
    IN_THREE_PASSES(block_slopes(brain, silu, l, gradient, of_x, b, block), slopes(l, of_scale, of_shift, b),
                    block_gradient(brain, silu, l, gradient, of_x, b, block))
}

#define NORMALISATION(name, brain, silu)                                                                               \
    void forward_##name(const void *x, const float *scale, const float *shift, int64_t step, float *mean, float *rstd, \
                        float *partial, int64_t batch, int64_t positions, int64_t channels, int64_t groups,            \
                        int64_t rows, float epsilon, void *y) {                                                        \
        Layer layer = {x, scale, shift, mean, rstd, partial, step, batch, positions, channels, groups, rows, epsilon}; \
        _Pragma("omp parallel")                                                                                        \
        forward(brain, silu, &layer, y);                                                                               \
    }                                                                                                                  \
    void backward_##name(const void *x, const float *scale, const float *shift, int64_t step, float *mean,             \
                         float *rstd, float *partial, int64_t batch, int64_t positions, int64_t channels,              \
                         int64_t groups, int64_t rows, float epsilon, const void *gradient, void *of_x,                \
                         float *of_scale, float *of_shift) {                                                           \
        Layer layer = {x, scale, shift, mean, rstd, partial, step, batch, positions, channels, groups, rows, epsilon}; \
        _Pragma("omp parallel")                                                                                        \
        backward(brain, silu, &layer, gradient, of_x, of_scale, of_shift);                                             \
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
#define WIDEST 16  // a length that the compiler knows, or it keeps the arrays out of the registers

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
            float query[ROWS][WIDEST], slope[ROWS][WIDEST], sum[ROWS], along[ROWS];
            eight of_query[ROWS][WIDEST / 8];
            memset(of_query, 0, sizeof of_query);
            for (int row = 0; row < ROWS; row++) {
                int real = i + row < queries;  // those beyond the last have no gradient
                sum[row] = real ? log_sum[task * queries + i + row] : 0;
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
                    weight[row] = exponential(brain, weight[row]);
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
