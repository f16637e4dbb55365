/* Decoding, a token of every row at a time: products by packed matrices, a layer's whole step, drawing. See generation/native.py.

   A product's sums stay in registers: a tile of up to ROWS rows by VECTORS vectors of outputs, over all inputs. The inputs of bfloat16
   come in pairs, which is what the processor's instruction for them takes; one that has none multiplies the halves in float32. A row's
   digits do not depend on the rows beside it. */

#include "kernels.h"

enum { ROWS = 6, VECTORS = LANES / 4, PANEL = LANES * VECTORS };
typedef floats tile[ROWS][VECTORS];

static inline __attribute__((always_inline)) void add_products(const int rows, const int vectors, number count, const real *x,
                                                               number stride, const uint32_t *w, number step, tile sums) {
    tile kept; /* a copy that nothing else can point to: it stays in registers */
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) kept[r][v] = sums[r][v];
    for (number i = 0; i < count; i++) {
        for (int v = 0; v < vectors; v++) __builtin_prefetch(w + (i + 16) * step + v * LANES); /* some 4 KB ahead: a cache is read once */
        for (int r = 0; r < rows; r++) {
            uint32_t one;
            memcpy(&one, x + r * stride + i * PAIR, 4);
            for (int v = 0; v < vectors; v++)
                kept[r][v] = dot(kept[r][v], (words){0} + one, *(const words *)(w + i * step + v * LANES));
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) sums[r][v] = kept[r][v];
}

/* sums += x wᵀ over `count` words: x has up to ROWS rows `stride` apart, w a line of outputs for each word, `step` words apart. With the
   numbers known where it is compiled the sums are kept in registers. */
static void multiply(int rows, int vectors, number count, const real *x, number stride, const uint32_t *w, number step, tile sums) {
#define CASE(R)                                                                        \
    case R:                                                                            \
        if (vectors == 1) add_products(R, 1, count, x, stride, w, step, sums);         \
        else add_products(R, VECTORS, count, x, stride, w, step, sums);                \
        break;
    switch (rows) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) }
#undef CASE
}

static number least(number a, number b) { return a < b ? a : b; }

/* A matrix [outputs, inputs] as panels of PANEL outputs: [outputs / PANEL, inputs / PAIR, PANEL, PAIR], filled up with zeros. */
void pack_matrix(number outputs, number inputs, const float *weight, real *packed) {
#pragma omp parallel for schedule(static)
    for (number first = 0; first < outputs; first += PANEL)
        for (number i = 0; i < inputs; i++)
            for (number n = 0; n < PANEL; n++)
                packed[first * inputs + (i / PAIR * PANEL + n) * PAIR + i % PAIR] =
                    first + n < outputs ? put(weight[(first + n) * inputs + i]) : 0;
}

/* x Wᵀ + bias + before, to `wide` or to `narrow`; bias and before may be absent, before may be wide. */
void linear(number rows, number outputs, number inputs, const real *x, const real *weight, const float *bias, const float *before,
            float *wide, real *narrow) {
    number panels = (outputs + PANEL - 1) / PANEL, many = 8 * ROWS, blocks = (rows + many - 1) / many;
#pragma omp parallel for schedule(static)
    for (number block = 0; block < blocks * panels; block++) {
        number first = block / blocks * PANEL, count = least(PANEL, outputs - first), from = block % blocks * many;
        for (number r = from; r < least(rows, from + many); r += ROWS) {
            tile sums = {};
            int some = least(ROWS, rows - r);
            multiply(some, VECTORS, inputs / PAIR, x + r * inputs, inputs, (const uint32_t *)(weight + first * inputs), PANEL, sums);
            for (int i = 0; i < some; i++) {
                float *sum = (float *)sums[i];
                number at = (r + i) * outputs + first;
                for (number n = 0; bias && n < count; n++) sum[n] += bias[first + n];
                for (number n = 0; before && n < count; n++) sum[n] += before[at + n];
                for (number n = 0; wide && n < count; n++) wide[at + n] = sum[n];
                for (number n = 0; narrow && n < count; n++) narrow[at + n] = put(sum[n]);
            }
        }
    }
}

/* x / sqrt(sum of x² + floor): RMSNorm but for its weight, which the matrix that follows holds. */
void unit(number rows, number size, float floor, const float *x, real *out) {
#pragma omp parallel for schedule(static)
    for (number r = 0; r < rows; r++) {
        const float *from = x + r * size;
        real *to = out + r * size;
        float squares = floor;
#pragma omp simd reduction(+ : squares)
        for (number i = 0; i < size; i++) squares += from[i] * from[i];
        float scale = 1.0f / sqrtf(squares);
#pragma omp simd
        for (number i = 0; i < size; i++) to[i] = put(from[i] * scale);
    }
}

/* A layer's cache for one row and key head: keys [S / BLOCK, E / PAIR, BLOCK, PAIR], values [S / PAIR, E', PAIR] with E' a multiple of 16,
   S of BLOCK: as `multiply` reads them, one after the other. */
enum { BLOCK = 64 };
static number padded(number size) { return (size + 15) / 16 * 16; }
static number key_at(number size, number slot, number i) {
    return (slot / BLOCK * (size / PAIR) + i / PAIR) * BLOCK * PAIR + slot % BLOCK * PAIR + i % PAIR;
}
static number value_at(number size, number slot, number i) { return (slot / PAIR * padded(size) + i) * PAIR + slot % PAIR; }

/* Keys and values of new tokens, [B, T, 2 K, E] as a projection left them, into the slots from the first on; keys normed and turned. */
void store_tokens(number batch, number time, number shared, number size, number slots, const real *fresh, const float *weight, float eps,
                  const float *cos, const float *sin, const int64_t *positions, real *keys, real *values) {
#pragma omp parallel for schedule(static)
    for (number r = 0; r < batch * shared; r++)
        for (number t = 0; t < time; t++) {
            number token = r / shared * time + t, angle = positions[token] * size / 2;
            const real *k = fresh + (token * 2 * shared + r % shared) * size, *v = k + shared * size;
            real turned[size];
            turn(size, k, weight, eps, cos + angle, sin + angle, turned);
            for (number i = 0; i < size; i++) keys[r * slots * size + key_at(size, t, i)] = turned[i];
            for (number i = 0; i < size; i++) values[r * slots * padded(size) + value_at(size, t, i)] = v[i];
        }
}

/* Some rows' last tokens from one cache to another: of row `from[n]`, before slot `old_end`, to row `to[n]`, before slot `new_end`. Both
   are rings. What else the new row holds becomes nought, for a product reads it: it must be a number. */
void copy_tokens(number count, number shared, number size, const int64_t *from, const int64_t *to, const int64_t *lengths,
                 number old_slots, number old_end, const real *old_keys, const real *old_values, number new_slots, number new_end,
                 real *new_keys, real *new_values) {
#pragma omp parallel for schedule(static)
    for (number r = 0; r < count * shared; r++) {
        number old = from[r / shared] * shared + r % shared, new = to[r / shared] * shared + r % shared;
        const real *key = old_keys + old * old_slots * size, *value = old_values + old * old_slots * padded(size);
        real *to_key = new_keys + new * new_slots * size, *to_value = new_values + new * new_slots * padded(size);
        memset(to_value, 0, new_slots * padded(size) * sizeof(real));
        for (number back = 1; back <= lengths[r / shared]; back++) {
            number there = (old_end - back) % old_slots, here = (new_end - back) % new_slots;
            there += there < 0 ? old_slots : 0;
            here += here < 0 ? new_slots : 0;
            for (number i = 0; i < size; i += PAIR)
                memcpy(to_key + key_at(size, here, i), key + key_at(size, there, i), PAIR * sizeof(real));
            for (number i = 0; i < size; i++) to_value[value_at(size, here, i)] = value[value_at(size, there, i)];
        }
    }
}

/* One new token of each row: its key and value go to `slot` of the cache, its queries look at all slots that are not `hidden` [B, S].
   qkv [B, (H + 2 K) E], cos and sin [positions, E / 2], mixed [B, H E]. */
static void attend(number batch, number heads, number shared, number size, number slots, number slot, const real *qkv,
                   const float *q_norm, const float *k_norm, float eps, const float *cos, const float *sin, const int64_t *positions,
                   const uint8_t *hidden, real *keys, real *values, real *mixed) {
    float scale = 1.0f / sqrtf(size);
    number group = heads / shared, wide = padded(size);
#pragma omp parallel for schedule(static)
    for (number r = 0; r < batch * shared; r++) {
        number b = r / shared, k = r % shared;
        const real *row = qkv + b * (heads + 2 * shared) * size, *fresh = row + (heads + shared + k) * size;
        const float *cosines = cos + positions[b] * size / 2, *sines = sin + positions[b] * size / 2;
        const uint8_t *hide = hidden + b * slots;
        real *key = keys + r * slots * size, *value = values + r * slots * wide;
        real query[group * size], new[size], probs[group * slots];
        float score[slots];
        number begins[slots / PANEL + 1], ends[slots / PANEL + 1], ranges = 0; /* panels of slots of which some are seen */
        turn(size, row + (heads + k) * size, k_norm, eps, cosines, sines, new);
        for (number i = 0, at = key_at(size, slot, 0); i < size; i += PAIR, at += BLOCK * PAIR) memcpy(key + at, new + i, PAIR * sizeof(real));
        for (number i = 0, at = value_at(size, slot, 0); i < size; i++, at += PAIR) value[at] = fresh[i];
        for (number g = 0; g < group; g++) turn(size, row + (k * group + g) * size, q_norm, eps, cosines, sines, query + g * size);
        for (number s = 0; s < slots; s += PANEL) {
            if (!memchr(hide + s, 0, PANEL)) continue;
            if (ranges && ends[ranges - 1] == s) ranges--;
            else begins[ranges] = s;
            ends[ranges++] = s + PANEL;
        }
        for (number g = 0; g < group; g += ROWS) {
            int some = least(ROWS, group - g);
            float scores[ROWS][slots];
            for (number n = 0; n < ranges; n++)
                for (number s = begins[n]; s < ends[n]; s += PANEL) {
                    tile sums = {};
                    multiply(some, VECTORS, size / PAIR, query + g * size, size, (const uint32_t *)(key + key_at(size, s, 0)), BLOCK, sums);
                    for (int i = 0; i < some; i++) memcpy(scores[i] + s, sums[i], sizeof sums[i]);
                }
            for (int i = 0; i < some; i++) {
                real *p = probs + (g + i) * slots;
                float most = -INFINITY, total = 0;
                for (number n = 0; n < ranges; n++)
#pragma omp simd reduction(max : most)
                    for (number s = begins[n]; s < ends[n]; s++) {
                        score[s] = hide[s] ? -INFINITY : scores[i][s] * scale;
                        most = score[s] > most ? score[s] : most;
                    }
                for (number n = 0; n < ranges; n++)
#pragma omp simd reduction(+ : total)
                    for (number s = begins[n]; s < ends[n]; s++) {
                        score[s] = exponential(score[s] - most);
                        total += score[s];
                    }
                float share = 1.0f / total;
                for (number n = 0; n < ranges; n++)
#pragma omp simd
                    for (number s = begins[n]; s < ends[n]; s++) p[s] = put(score[s] * share);
            }
            for (number e = 0; e < wide;) {
                tile sums = {};
                int vectors = wide - e < PANEL ? 1 : VECTORS;
                for (number n = 0; n < ranges; n++)
                    multiply(some, vectors, (ends[n] - begins[n]) / PAIR, probs + g * slots + begins[n], slots,
                             (const uint32_t *)(value + value_at(size, begins[n], e)), wide, sums);
                for (int i = 0; i < some; i++)
                    for (number j = e; j < least(size, e + vectors * LANES); j++)
                        mixed[(b * heads + k * group + g + i) * size + j] = put(((float *)sums[i])[j - e]);
                e += vectors * LANES;
            }
        }
    }
}

/* A layer's step for every row of x [B, D], the residual stream. Matrices are packed; `scratch` has room for B (D + (H + 2 K) E + H E + 3 F)
   numbers; see `attend` for the cache. */
void decode_layer(number batch, number width, number heads, number shared, number size, number inner, float eps,
                  const real *qkv, const float *qkv_bias, const float *q_norm, const float *k_norm, const real *out,
                  const float *out_bias, const real *gate_up, const float *gate_up_bias, const real *down, const float *down_bias,
                  number slots, number slot, const float *cos, const float *sin, const int64_t *positions, const uint8_t *hidden, real *keys,
                  real *values, float *x,
                  real *scratch) {
    number all = (heads + 2 * shared) * size;
    real *normed = scratch, *heads_in = normed + batch * width, *mixed = heads_in + batch * all, *both = mixed + batch * heads * size,
         *acted = both + batch * 2 * inner;
    unit(batch, width, width * eps, x, normed);
    linear(batch, all, width, normed, qkv, qkv_bias, NULL, NULL, heads_in);
    attend(batch, heads, shared, size, slots, slot, heads_in, q_norm, k_norm, eps, cos, sin, positions, hidden, keys, values, mixed);
    linear(batch, width, heads * size, mixed, out, out_bias, x, x, NULL);
    unit(batch, width, width * eps, x, normed);
    linear(batch, 2 * inner, width, normed, gate_up, gate_up_bias, NULL, NULL, both);
    swiglu_forward(batch, inner, both, acted);
    linear(batch, width, inner, acted, down, down_bias, x, x, NULL);
}

/* One token a row from softmax(logits · sharpness) by the inverse of its running sum at u, and its log-prob. Sums are made of blocks of
   tokens: which block, then which token of it. A token without probability is never drawn. */
void draw_tokens(number rows, number vocabulary, float sharpness, const float *logits, const double *u, int64_t *tokens, float *logprobs) {
#pragma omp parallel for schedule(static)
    for (number r = 0; r < rows; r++) {
        const float *row = logits + r * vocabulary;
        number blocks = (vocabulary + BLOCK - 1) / BLOCK, token = -1;
        float most = -INFINITY, mass[blocks];
        double total = 0, upto = 0;
#pragma omp simd reduction(max : most)
        for (number i = 0; i < vocabulary; i++) most = row[i] > most ? row[i] : most;
        for (number k = 0; k < blocks; k++) {
            float sum = 0;
#pragma omp simd reduction(+ : sum)
            for (number i = k * BLOCK; i < least(vocabulary, (k + 1) * BLOCK); i++) sum += exponential((row[i] - most) * sharpness);
            mass[k] = sum;
            total += sum;
        }
        for (number k = 0; k < blocks; k++) { /* rounding may lead past the last: then the last with probability is taken */
            if (upto + mass[k] <= u[r] * total && upto + mass[k] < total) {
                upto += mass[k];
                continue;
            }
            for (number i = k * BLOCK; i < least(vocabulary, (k + 1) * BLOCK); i++) {
                float p = exponential((row[i] - most) * sharpness);
                if (p > 0) token = i;
                upto += p;
                if (p > 0 && upto > u[r] * total) break;
            }
            break;
        }
        tokens[r] = token < 0 ? 0 : token;
        logprobs[r] = (row[tokens[r]] - most) * sharpness - log(total);
    }
}
