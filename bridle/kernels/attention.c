/* softmax(q kᵀ / √E) v and its gradients, over the keys that a query sees: what is hidden is not multiplied.

   q, out [B, T, H · E]; kv [B, S, 2 K · E], keys and values side by side, read where the projections left them; their norms and
   rotary embedding are made here and made again in the backward pass. `sees` [B, T, 3]: a query sees the keys [0, prefix) and
   [start, end) of its row; absent: those up to its own place. A key head with its query heads is one thread's work.

   Queries go by tiles of LANES that see the same but for `end`, a query a lane, so that no sum or maximum runs across a vector.
   A tile's scores are [keys, LANES]: the keys [0, low) and `high` keys from `first`, both rounded up to GRAIN; what of them a query
   does not see counts as -inf. */

#include "kernels.h"
#include <stdlib.h>

/* ------------------------------------------------------------------------------------------------------------ products */

enum { ROWS = LANES / 2 };
enum { GRAIN = 2 * ROWS, TILES = 4, BLOCK = TILES * LANES }; /* a block: the queries that a key's gradient is summed over at once */
typedef VECTOR(int32_t, 4) ints;
typedef uint16_t halves __attribute__((vector_size(LANES * 4), aligned(2), may_alias)); /* of two rows, or twice as long */
#ifdef __clang__
#define SHUFFLE(type, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(type, a, b, ...) __builtin_shuffle(a, b, (type){__VA_ARGS__})
#endif
#define EVEN16 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define EVEN32 EVEN16, 32, 34, 36, 38, 40, 42, 44, 46, 48, 50, 52, 54, 56, 58, 60, 62
#define LOW8 0, 8, 1, 9, 2, 10, 3, 11
#define HIGH8 4, 12, 5, 13, 6, 14, 7, 15
#define LOW16 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define HIGH16 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#define LOW32 0, 32, 1, 33, 2, 34, 3, 35, 4, 36, 5, 37, 6, 38, 7, 39, 8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47
#define HIGH32 16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54, 23, 55, 24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63
#ifdef __AVX512F__
#define LOW_WORDS LOW16
#define HIGH_WORDS HIGH16
#define LOW_HALVES LOW32
#define HIGH_HALVES HIGH32
#define EVEN_HALVES EVEN32
#else
#define LOW_WORDS LOW8
#define HIGH_WORDS HIGH8
#define LOW_HALVES LOW16
#define HIGH_HALVES HIGH16
#define EVEN_HALVES EVEN16
#endif

/* c = a b, or c += a b, of some rows and one or two vectors of columns; a's word of row r and pair p is a[r * row + p * step]. */
static inline __attribute__((always_inline)) void product(const int rows, const int vectors, number pairs, const word *a, number row,
                                                          number step, const word *b, number width, float *c, number stride, int add) {
    floats sum[GRAIN][2];
    const word *parts[4] = {a, a + 4 * row, a + 8 * row, a + 12 * row}; /* so that a few registers hold all rows' addresses */
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++) sum[r][v] = add ? *(const floats *)(c + r * stride + v * LANES) : (floats){0};
    for (number p = 0; p < pairs; p++, b += width) {
        words one = *(const words *)b, two = vectors > 1 ? *(const words *)(b + LANES) : one;
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            words x = (words){0} + parts[r / 4][r % 4 * row];
            sum[r][0] = dot(sum[r][0], x, one);
            if (vectors > 1) sum[r][1] = dot(sum[r][1], x, two);
        }
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) parts[i] += step;
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++) *(floats *)(c + r * stride + v * LANES) = sum[r][v];
}

/* ROWS rows of a product as wide as a head. */
static void multiply(number size, number pairs, const word *a, number row, number step, const word *b, number width, float *c, int add) {
    number i = 0;
    for (; i + LANES < size; i += 2 * LANES) product(ROWS, 2, pairs, a, row, step, b + i, width, c + i, width, add);
    if (i < size) product(ROWS, 1, pairs, a, row, step, b + i, width, c + i, width, add);
}

/* ------------------------------------------------------------------------------------------------------------ layouts */

static inline number whole(number x, number unit) { return (x + unit - 1) / unit * unit; }

static inline floats choose(ints mask, floats yes, floats no) { return (floats)(((words)yes & (words)mask) | ((words)no & ~(words)mask)); }

#ifdef BFLOAT16
/* Two rows of bfloat16, one behind the other. */
static inline halves rounded(floats one, floats two) {
#ifdef __AVX512BF16__
    return (halves)_mm512_cvtne2ps_pbh((__m512)two, (__m512)one);
#else
    words a = (words)one, b = (words)two;
    a = (a + 0x7fff + ((a >> 16) & 1)) >> 16, b = (b + 0x7fff + ((b >> 16) & 1)) >> 16;
    halves x, y;
    memcpy(&x, &a, sizeof(a)), memcpy(&y, &b, sizeof(b));
    return SHUFFLE(halves, x, y, EVEN_HALVES);
#endif
}
#endif

static inline floats larger(floats a, floats b) { return choose(a > b, a, b); }

/* A word for each lane: a row's number and, of bfloat16, the next row's. */
static inline words both(floats one, floats two) {
#ifdef BFLOAT16
    return (words)SHUFFLE(halves, rounded(one, two), (halves){0}, LOW_WORDS, HIGH_WORDS);
#else
    (void)two;
    return (words)one;
#endif
}

/* PAIR rows, each of LANES numbers. */
static inline void store(real *to, number stride, floats one, floats two) {
#ifdef BFLOAT16
    halves x = rounded(one, two);
    memcpy(to, &x, sizeof(x) / 2);
    memcpy(to + stride, (char *)&x + sizeof(x) / 2, sizeof(x) / 2);
#else
    (void)two, (void)stride;
    *(floats *)to = one;
#endif
}

/* exp of what is not above 88, as in kernels.h */
static inline floats exponentials(floats x) {
    floats n = x * 1.44269504f + 12582912.0f; /* 1.5 · 2^23: the whole number nearest to x / ln 2 is in the lowest bits */
    words power = ((words)n + 127) << 23;
    n -= 12582912.0f;
    floats r = x - n * 0.693359375f + n * 2.12194440e-4f;
    floats p = r * (1.0f / 5040) + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r * r + r + 1.0f;
    return choose(x < -87.0f, (floats){0}, p * (floats)power);
}

/* LANES rows as columns: to[p * LANES + r] is the word p of row r. Each stage shuffles the first half of the rows with the second. */
static void across(number size, const real *rows, number stride, word *to) {
    for (number p = 0; p < size / PAIR; p += LANES) {
        words x[LANES], y[LANES];
        for (int r = 0; r < LANES; r++) x[r] = *(const words *)((const word *)(rows + r * stride) + p);
#pragma GCC unroll 4
        for (int stage = 1; stage < LANES; stage *= 2) {
#pragma GCC unroll 16
            for (int r = 0; r < LANES / 2; r++) {
                words a = x[r], b = x[r + LANES / 2];
                y[2 * r] = SHUFFLE(words, a, b, LOW_WORDS);
                y[2 * r + 1] = SHUFFLE(words, a, b, HIGH_WORDS);
            }
#pragma GCC unroll 16
            for (int r = 0; r < LANES; r++) x[r] = y[r];
        }
        for (int r = 0; r < LANES; r++) *(words *)(to + (p + r) * LANES) = x[r];
    }
}

/* Rows in pairs: to[r / PAIR * stride + i] holds row r's number i and, of bfloat16, the next row's. */
static void paired(number rows, const real *from, number stride, word *to) {
#ifdef BFLOAT16
    for (number r = 0; r < rows; r += 2, from += 2 * stride, to += stride)
        for (number i = 0; i < stride; i += 2 * LANES) {
            halves one = *(const halves *)(from + i), two = *(const halves *)(from + stride + i);
            *(halves *)(to + i) = SHUFFLE(halves, one, two, LOW_HALVES);
            *(halves *)(to + i + LANES) = SHUFFLE(halves, one, two, HIGH_HALVES);
        }
#else
    memcpy(to, from, rows * stride * sizeof(word));
#endif
}

/* --------------------------------------------------------------------------------------- a head's norm and rotary embedding

   `weight` [E]: RMSNorm within a head (Qwen3), or absent. cos, sin [E / 2]: those of the row's position. */

/* Σ x y by lanes, then by halves of them: a chain of additions would be what takes most of the time. */
static inline float sum_of_products(number size, const real *x, const float *y) {
    float part[LANES] = {0};
    number i = 0;
    for (; i + LANES <= size; i += LANES)
        for (int j = 0; j < LANES; j++) part[j] += get(x[i + j]) * (y ? y[i + j] : get(x[i + j]));
    for (int j = 0; i + j < size; j++) part[j] += get(x[i + j]) * (y ? y[i + j] : get(x[i + j]));
    for (int half = LANES / 2; half; half /= 2)
        for (int j = 0; j < half; j++) part[j] += part[half + j];
    return part[0];
}

static float inverse_norm(number size, const real *from, float eps) {
    return 1.0f / sqrtf(sum_of_products(size, from, 0) / size + eps);
}

void turn(number size, const real *from, const float *weight, float eps, const float *cos, const float *sin, real *to) {
    number half = size / 2;
    float scale = weight ? inverse_norm(size, from, eps) : 1;
#pragma omp simd
    for (number i = 0; i < half; i++) {
        float a = get(from[i]) * scale * (weight ? weight[i] : 1);
        float b = get(from[half + i]) * scale * (weight ? weight[half + i] : 1);
        to[i] = put(a * cos[i] - b * sin[i]);
        to[half + i] = put(b * cos[i] + a * sin[i]);
    }
}

/* The gradient of what was turned, to that of `from`; the weight's is added to. */
static void turn_back(number size, const float *grad, const real *from, const float *weight, float eps, const float *cos,
                      const float *sin, real *to, float *grad_weight) {
    number half = size / 2;
    if (!weight) {
#pragma omp simd
        for (number i = 0; i < half; i++) {
            to[i] = put(grad[i] * cos[i] + grad[half + i] * sin[i]);
            to[half + i] = put(grad[half + i] * cos[i] - grad[i] * sin[i]);
        }
        return;
    }
    float scale = inverse_norm(size, from, eps), turned[size];
#pragma omp simd
    for (number i = 0; i < half; i++) {
        float a = grad[i] * cos[i] + grad[half + i] * sin[i], b = grad[half + i] * cos[i] - grad[i] * sin[i];
        grad_weight[i] += a * get(from[i]) * scale;
        grad_weight[half + i] += b * get(from[half + i]) * scale;
        turned[i] = a * weight[i];
        turned[half + i] = b * weight[half + i];
    }
    float dot = sum_of_products(size, from, turned);
    float mean = dot * scale * scale * scale / size;
#pragma omp simd
    for (number i = 0; i < size; i++) to[i] = put(turned[i] * scale - get(from[i]) * mean);
}

/* ------------------------------------------------------------------------------------------------- what a tile of queries sees */

typedef struct {
    number at, count, low, first, high, prefix, start, least; /* `least`: the end of the query that sees least */
    ints end;
} tile;

/* The tile of queries from t on; it ends where another query sees a different prefix or start. */
static tile tile_at(const int64_t *sees, number t, number time) {
    number prefix = sees ? sees[3 * t] : 0, start = sees ? sees[3 * t + 1] : 0, most = 0, least = INT64_MAX, count = 0;
    int32_t end[LANES];
    for (; count < LANES && t + count < time; count++) {
        const int64_t *seen = sees + 3 * (t + count);
        if (sees && (seen[0] != prefix || seen[1] != start)) break;
        number last = sees ? seen[2] : t + count + 1;
        end[count] = (int32_t)last;
        most = last > most ? last : most;
        least = last < least ? last : least;
    }
    for (number lane = count; lane < LANES; lane++) end[lane] = (int32_t)most; /* lanes to spare see something, to no effect */
    if (start < prefix) start = prefix;                                        /* no key counts twice */
    tile x = {.at = t, .count = count, .low = whole(prefix, GRAIN), .first = start / PAIR * PAIR, .prefix = prefix, .start = start};
    x.high = most > start ? whole(most - x.first, GRAIN) : 0;
    x.least = least;
    memcpy(&x.end, end, sizeof(end));
    return x;
}

/* The key of a tile's row of scores. */
static inline number key_of(const tile *x, number row) { return row < x->low ? row : x->first + row - x->low; }

/* -inf where a query does not see a key. */
static void hide(const tile *x, float *scores) {
    const floats never = (floats){0} - INFINITY;
    number width = x->low + x->high, begin = x->low + x->start - x->first, least = x->low + x->least - x->first;
    for (number i = x->prefix; i < begin && i < width; i++) *(floats *)(scores + i * LANES) = never;
    for (number i = least > begin ? least : begin; i < width; i++) {
        floats *row = (floats *)(scores + i * LANES);
        *row = choose((ints){0} + (int32_t)key_of(x, i) >= x->end, never, *row);
    }
}

/* All keys, or values, that a tile sees, [keys, stride], times its queries' columns: [keys, LANES]. */
static void by_columns(const tile *x, number size, const real *rows, number stride, const word *columns, float *to) {
    for (number i = 0; i < x->low + x->high; i += GRAIN) {
        const word *a = (const word *)(rows + key_of(x, i) * stride);
        product(GRAIN, 1, size / PAIR, a, stride / PAIR, 1, columns, LANES, to + i * LANES, LANES, 0);
    }
}

/* Each query's sum of rows by weights, in pairs of keys: [LANES, stride]. */
static void by_rows(const tile *x, number size, const word *weights, const word *rows, number stride, float *to) {
    number low = x->low / PAIR, high = x->high / PAIR;
    const word *after = weights + low * LANES, *others = rows + x->first / PAIR * stride;
    for (number r = 0; r < LANES; r += ROWS) {
        if (low) multiply(size, low, weights + r, 1, LANES, rows, stride, to + r * stride, 0);
        multiply(size, high, after + r, 1, LANES, others, stride, to + r * stride, low > 0);
    }
}

/* ------------------------------------------------------------------------------------------------------- a thread's memory */

/* Heads have rows of `wide` numbers, keys are `most`, zeros behind both. "Pairs" are pairs of rows, see `paired`. */
typedef struct {
    number size, wide, most;
    float scale;
    real *keys, *values;         /* [most, wide] */
    word *key_pairs, *value_pairs;
    real *queries, *grads;       /* a block's, [BLOCK, wide] */
    word *columns, *grad_columns;
    float *scores, *slopes, *sums; /* a tile's: [2 most, LANES] of the scores, [BLOCK, wide] by queries */
    word *pairs;                 /* of keys: the weights forward, the scores' gradients backward */
    float *grad_keys, *grad_values; /* [most, wide], and what follows: of the backward pass alone */
    real *weight_rows, *slope_rows; /* a block's, [2 most, BLOCK] */
    word *query_pairs, *grad_pairs;
} work;

static void *carve(uintptr_t *at, number bytes) {
    uintptr_t here = *at;
    *at += whole(bytes, 64);
    return (void *)here;
}

static uintptr_t lay_out(work *w, uintptr_t at, int backward) {
    number rows = w->most * w->wide * sizeof(real), pairs = w->most / PAIR * w->wide * sizeof(word), block = BLOCK * w->wide;
    number column = whole(w->size / PAIR, LANES) * LANES * sizeof(word), score = 2 * w->most * LANES * sizeof(float);
    w->keys = carve(&at, rows), w->values = carve(&at, rows);
    w->queries = carve(&at, block * sizeof(real)), w->columns = carve(&at, column);
    w->scores = carve(&at, score), w->pairs = carve(&at, score), w->sums = carve(&at, block * sizeof(float));
    if (!backward) {
        w->value_pairs = carve(&at, pairs);
        return at;
    }
    w->key_pairs = carve(&at, pairs);
    w->grads = carve(&at, block * sizeof(real)), w->grad_columns = carve(&at, column);
    w->slopes = carve(&at, score);
    w->grad_keys = carve(&at, w->most * w->wide * sizeof(float)), w->grad_values = carve(&at, w->most * w->wide * sizeof(float));
    w->weight_rows = carve(&at, 2 * w->most * BLOCK * sizeof(real)), w->slope_rows = carve(&at, 2 * w->most * BLOCK * sizeof(real));
    w->query_pairs = carve(&at, block * sizeof(word)), w->grad_pairs = carve(&at, block * sizeof(word));
    return at;
}

/* What does not change from one pass, sequence or head to another. */
typedef struct {
    number batch, time, keys, heads, shared, size;
    const real *q, *kv;
    const float *q_weight, *k_weight, *cos, *sin;
    float eps;
    const int64_t *q_positions, *positions, *sees;
} given;

/* A thread's room, to be freed. */
static void *make_room(work *w, const given *of, int backward) {
    number size = of->size;
    *w = (work){.size = size, .wide = whole(size, PAIR * LANES), .most = whole(of->keys, GRAIN) + GRAIN, .scale = 1.0f / sqrtf(size)};
    void *room = aligned_alloc(64, lay_out(w, 0, backward));
    lay_out(w, (uintptr_t)room, backward);
    memset(w->keys, 0, w->most * w->wide * sizeof(real));
    memset(w->values, 0, w->most * w->wide * sizeof(real));
    return room;
}

static void read_keys(const work *w, const given *of, number b, number k) {
    number size = of->size, step = 2 * of->shared * size;
    const real *from = of->kv + b * of->keys * step + k * size;
    for (number s = 0; s < of->keys; s++) {
        number at = (of->positions ? of->positions[b * of->keys + s] : s) * size / 2;
        turn(size, from + s * step, of->k_weight, of->eps, of->cos + at, of->sin + at, w->keys + s * w->wide);
        memcpy(w->values + s * w->wide, from + of->shared * size + s * step, size * sizeof(real));
    }
}

/* Where the rotary tables and the projection's rows have a query. */
static inline number angle_of(const given *of, number b, number t) {
    return (of->q_positions ? of->q_positions[b * of->time + t] : t) * of->size / 2;
}

static inline number place_of(const given *of, number b, number h, number t) { return ((b * of->time + t) * of->heads + h) * of->size; }

static void read_queries(const given *of, number b, number h, const tile *x, number wide, real *to) {
    if (x->count < LANES || wide > of->size) memset(to, 0, LANES * wide * sizeof(real));
    for (number r = 0; r < x->count; r++) {
        number at = angle_of(of, b, x->at + r);
        turn(of->size, of->q + place_of(of, b, h, x->at + r), of->q_weight, of->eps, of->cos + at, of->sin + at, to + r * wide);
    }
}

/* ------------------------------------------------------------------------------------------------------------- forward */

static void tile_forward(const work *w, const tile *x, real *out, number stride, float *kept) {
    number width = x->low + x->high;
    float *scores = w->scores, sums[LANES], shifts[LANES];
    floats sum = {0}, largest[4];
    across(w->size, w->queries, w->wide, w->columns);
    by_columns(x, w->size, w->keys, w->wide, w->columns, scores);
    hide(x, scores);
    for (int j = 0; j < 4; j++) largest[j] = *(floats *)(scores + j * LANES);
    for (number i = 4; i < width; i += 4) /* four at once, for each waits for the one before */
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) largest[j] = larger(*(floats *)(scores + (i + j) * LANES), largest[j]);
    floats shift = larger(larger(largest[0], largest[1]), larger(largest[2], largest[3])) * w->scale;
    for (number i = 0; i < width * LANES; i += PAIR * LANES) {
        floats one = exponentials(*(floats *)(scores + i) * w->scale - shift), two = {0};
        if (PAIR > 1) two = exponentials(*(floats *)(scores + i + LANES) * w->scale - shift);
        sum += one + two;
        *(words *)(w->pairs + i / PAIR) = both(one, two);
    }
    by_rows(x, w->size, w->pairs, w->value_pairs, w->wide, w->sums);
    memcpy(sums, &sum, sizeof(sum));
    memcpy(shifts, &shift, sizeof(shift));
    for (number r = 0; r < x->count; r++, out += stride) {
        const float *from = w->sums + r * w->wide;
        float share = 1.0f / sums[r];
        kept[2 * r] = shifts[r], kept[2 * r + 1] = share;
#pragma omp simd
        for (number i = 0; i < w->size; i++) out[i] = put(from[i] * share);
    }
}

/* `sums` [B, H, T, 2]: a query's largest score m, and 1 / Σ e^(score - m). */
void attention_forward(number batch, number time, number keys, number heads, number shared, number size, const real *q, const real *kv,
                       const float *q_weight, const float *k_weight, float eps, const float *cos, const float *sin,
                       const int64_t *q_positions, const int64_t *positions, const int64_t *sees, real *out, float *sums) {
    const given of = {batch, time, keys, heads, shared, size, q, kv, q_weight, k_weight, cos, sin, eps, q_positions, positions, sees};
#pragma omp parallel
    {
        work w;
        void *room = make_room(&w, &of, 0);
#pragma omp for schedule(static) nowait
        for (number unit = 0; unit < batch * shared; unit++) {
            number b = unit / shared, k = unit % shared, group = heads / shared;
            read_keys(&w, &of, b, k);
            paired(w.most, w.values, w.wide, w.value_pairs);
            for (number t = 0, count; t < time; t += count) {
                tile x = tile_at(sees ? sees + b * time * 3 : 0, t, time);
                count = x.count;
                for (number h = k * group; h < (k + 1) * group; h++) {
                    read_queries(&of, b, h, &x, w.wide, w.queries);
                    tile_forward(&w, &x, out + place_of(&of, b, h, t), heads * size, sums + ((b * heads + h) * time + t) * 2);
                }
            }
        }
        free(room);
    }
}

/* ------------------------------------------------------------------------------------------------------------ backward */

/* One tile of a block: the weights again, their scores' gradients, and the queries'. */
static void tile_backward(const work *w, const tile *x, number place, number width, const float *sums) {
    number lane = place * LANES, seen = x->low + x->high;
    float *scores = w->scores, *slopes = w->slopes, shifts[LANES] = {0}, shares[LANES] = {0};
    real *weights = w->weight_rows + lane, *rows = w->slope_rows + lane;
    floats mean = {0}, shift, share;
    for (number r = 0; r < x->count; r++) shifts[r] = sums[2 * r], shares[r] = sums[2 * r + 1];
    memcpy(&shift, shifts, sizeof(shift));
    memcpy(&share, shares, sizeof(share));
    across(w->size, w->queries + lane * w->wide, w->wide, w->columns);
    across(w->size, w->grads + lane * w->wide, w->wide, w->grad_columns);
    by_columns(x, w->size, w->keys, w->wide, w->columns, scores);
    by_columns(x, w->size, w->values, w->wide, w->grad_columns, slopes);
    hide(x, scores);
    for (number i = 0; i < seen; i += PAIR) {
        floats weight[2] = {{0}, {0}};
        for (int j = 0; j < PAIR; j++) {
            floats *score = (floats *)(scores + (i + j) * LANES);
            *score = weight[j] = exponentials(*score * w->scale - shift) * share;
            mean += weight[j] * *(floats *)(slopes + (i + j) * LANES);
        }
        store(weights + i * BLOCK, BLOCK, weight[0], weight[1]);
    }
    for (number i = 0; i < seen; i += PAIR) {
        floats slope[2] = {{0}, {0}};
        for (int j = 0; j < PAIR; j++) {
            number at = (i + j) * LANES;
            slope[j] = *(floats *)(scores + at) * (*(floats *)(slopes + at) - mean) * w->scale;
        }
        store(rows + i * BLOCK, BLOCK, slope[0], slope[1]);
        *(words *)(w->pairs + i / PAIR * LANES) = both(slope[0], slope[1]);
    }
    for (number i = seen; i < width; i++) {
        memset(weights + i * BLOCK, 0, LANES * sizeof(real));
        memset(rows + i * BLOCK, 0, LANES * sizeof(real));
    }
    by_rows(x, w->size, w->pairs, w->key_pairs, w->wide, w->sums + lane * w->wide);
}

/* What a block's queries add to the gradients of keys and values. */
static void keys_backward(const work *w, const tile *tiles, number count, number width) {
    number from = 0;
    paired(count * LANES, w->queries, w->wide, w->query_pairs);
    paired(count * LANES, w->grads, w->wide, w->grad_pairs);
    for (number i = 0; i < width; i += ROWS) {
        number at = key_of(tiles, i) * w->wide;
        while (tiles[from].low + tiles[from].high <= i) from++; /* the first tiles do not see the last keys */
        number pairs = (count - from) * LANES / PAIR, before = from * LANES / PAIR;
        const word *weights = (const word *)(w->weight_rows + i * BLOCK) + before, *rows = (const word *)(w->slope_rows + i * BLOCK) + before;
        multiply(w->size, pairs, weights, BLOCK / PAIR, 1, w->grad_pairs + before * w->wide, w->wide, w->grad_values + at, 1);
        multiply(w->size, pairs, rows, BLOCK / PAIR, 1, w->query_pairs + before * w->wide, w->wide, w->grad_keys + at, 1);
    }
}

/* A block: tiles of a head that see the same but for `end`, from query t on. The number of its queries. */
static number block_backward(const work *w, const given *of, number b, number h, number t, const float *sums, const real *grad,
                             real *grad_q, float *grad_weight) {
    tile tiles[TILES];
    number width = 0, of_tiles = 0, next = t;
    for (; of_tiles < TILES && next < of->time; of_tiles++) {
        tile *x = tiles + of_tiles;
        *x = tile_at(of->sees ? of->sees + b * of->time * 3 : 0, next, of->time);
        if (x->prefix != tiles[0].prefix || x->start != tiles[0].start) break;
        real *queries = w->queries + of_tiles * LANES * w->wide, *grads = w->grads + of_tiles * LANES * w->wide;
        read_queries(of, b, h, x, w->wide, queries);
        if (x->count < LANES || w->wide > of->size) memset(grads, 0, LANES * w->wide * sizeof(real));
        for (number r = 0; r < x->count; r++) memcpy(grads + r * w->wide, grad + place_of(of, b, h, next + r), of->size * sizeof(real));
        width = x->low + x->high > width ? x->low + x->high : width;
        next += x->count;
    }
    for (number i = 0; i < of_tiles; i++) {
        const tile *x = tiles + i;
        tile_backward(w, x, i, width, sums + ((b * of->heads + h) * of->time + x->at) * 2);
        for (number r = 0; r < x->count; r++) {
            number at = angle_of(of, b, x->at + r), place = place_of(of, b, h, x->at + r);
            turn_back(of->size, w->sums + (i * LANES + r) * w->wide, of->q + place, of->q_weight, of->eps, of->cos + at, of->sin + at,
                      grad_q + place, grad_weight);
        }
    }
    keys_backward(w, tiles, of_tiles, width);
    return next - t;
}

/* grad_q and grad_kv are laid out as q and kv; the norms' gradients, [B · K, E], are still to be summed. */
void attention_backward(number batch, number time, number keys, number heads, number shared, number size, const real *q, const real *kv,
                        const float *q_weight, const float *k_weight, float eps, const float *cos, const float *sin,
                        const int64_t *q_positions, const int64_t *positions, const int64_t *sees, const float *sums, const real *grad,
                        real *grad_q, real *grad_kv, float *grad_q_weight, float *grad_k_weight) {
    const given of = {batch, time, keys, heads, shared, size, q, kv, q_weight, k_weight, cos, sin, eps, q_positions, positions, sees};
#pragma omp parallel
    {
        work w;
        void *room = make_room(&w, &of, 1);
#pragma omp for schedule(static) nowait
        for (number unit = 0; unit < batch * shared; unit++) {
            number b = unit / shared, k = unit % shared, group = heads / shared, step = 2 * shared * size;
            read_keys(&w, &of, b, k);
            paired(w.most, w.keys, w.wide, w.key_pairs);
            memset(w.grad_keys, 0, w.most * w.wide * sizeof(float));
            memset(w.grad_values, 0, w.most * w.wide * sizeof(float));
            for (number h = k * group; h < (k + 1) * group; h++)
                for (number t = 0; t < time;) t += block_backward(&w, &of, b, h, t, sums, grad, grad_q, grad_q_weight + unit * size);
            for (number s = 0; s < keys; s++) {
                number at = (positions ? positions[b * keys + s] : s) * size / 2, place = (b * keys + s) * step + k * size;
                turn_back(size, w.grad_keys + s * w.wide, kv + place, k_weight, eps, cos + at, sin + at, grad_kv + place,
                          grad_k_weight + unit * size);
                real *to = grad_kv + place + shared * size;
                const float *from = w.grad_values + s * w.wide;
#pragma omp simd
                for (number i = 0; i < size; i++) to[i] = put(from[i]);
            }
        }
        free(room);
    }
}
