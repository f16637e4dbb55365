/* Decoding a token at a time: see generation/native.py. */

#include "kernels.h"

/* ------------------------------------------------------------------------------- decoding: see `Decoding` in generation/native.py

   x / sqrt(sum of x² + floor): RMSNorm but for its weight, which the matrix that follows holds. */

void unit(number rows, number size, float floor, const real *x, real *out) {
#pragma omp parallel for schedule(static)
    for (number r = 0; r < rows; r++) {
        const real *from = x + r * size;
        real *to = out + r * size;
        float squares = floor;
#pragma omp simd reduction(+ : squares)
        for (number i = 0; i < size; i++) squares += get(from[i]) * get(from[i]);
        float scale = 1.0f / sqrtf(squares);
#pragma omp simd
        for (number i = 0; i < size; i++) to[i] = put(get(from[i]) * scale);
    }
}

/* A head normed by `weight` (or not) and turned by its position's angles, pairs side by side. */
static void turn(number size, const real *from, const real *weight, float floor, const float *angles, float *to) {
    float scale = 1.0f;
    if (weight) {
        float squares = floor;
#pragma omp simd reduction(+ : squares)
        for (number i = 0; i < size; i++) squares += get(from[i]) * get(from[i]);
        scale = 1.0f / sqrtf(squares);
    }
    for (number i = 0; i < size; i += 2) {
        float a = get(from[i]) * scale * (weight ? get(weight[i]) : 1.0f);
        float b = get(from[i + 1]) * scale * (weight ? get(weight[i + 1]) : 1.0f);
        to[i] = a * angles[i] - b * angles[i + 1];
        to[i + 1] = b * angles[i] + a * angles[i + 1];
    }
}

/* One new token of each row: its key and value go to `slot` of the cache, its queries look at all slots that `bias` does not hide.
   qkv [B, (H + 2 K) E], angles [B, E / 2, 2] (cos, sin), bias [B, K, S] (negative: hidden), keys [B, K, E, S], values [B, K, S, E]: so
   no sum runs along a vector; mixed [B, H E]. The queries hold the scale of the scores. */
void attend_step(number batch, number heads, number shared, number size, number slots, number slot, const real *qkv, const real *q_norm,
                 const real *k_norm, float floor, const float *angles, const real *bias, real *keys, real *values, real *mixed) {
    number group = heads / shared;
#pragma omp parallel for schedule(static)
    for (number r = 0; r < batch * shared; r++) {
        number b = r / shared, k = r % shared;
        const real *row = qkv + b * (heads + 2 * shared) * size, *hide = bias + r * slots;
        const float *angle = angles + b * size;
        real *key = keys + r * slots * size, *value = values + r * size * slots;
        float new[size], query[group * size], score[group * slots], sum[group * size];
        turn(size, row + (heads + k) * size, k_norm, floor, angle, new);
        for (number i = 0; i < size; i++) key[i * slots + slot] = put(new[i]);
        memcpy(value + slot * size, row + (heads + shared + k) * size, size * sizeof(real));
        for (number g = 0; g < group; g++) turn(size, row + (k * group + g) * size, q_norm, floor, angle, query + g * size);
        for (number s = 0; s < group * slots; s++) score[s] = 0;
        for (number i = 0; i < size; i += 4) { /* four at a time, for the sums are loaded and stored each time; the last may be two */
            const real *one = key + i * slots, *two = one + slots, *three = i + 2 < size ? two + slots : one, *four = three + slots;
            for (number g = 0; g < group; g++) {
                const float *q = query + g * size + i;
                float third = i + 2 < size ? q[2] : 0, fourth = i + 2 < size ? q[3] : 0, *p = score + g * slots;
#pragma omp simd
                for (number s = 0; s < slots; s++)
                    p[s] += q[0] * get(one[s]) + q[1] * get(two[s]) + third * get(three[s]) + fourth * get(four[s]);
            }
        }
        for (number g = 0; g < group; g++) {
            float *p = score + g * slots, most = -INFINITY, total = 0;
#pragma omp simd reduction(max : most)
            for (number s = 0; s < slots; s++) {
                p[s] = get(hide[s]) < 0 ? -INFINITY : p[s];
                most = p[s] > most ? p[s] : most;
            }
#pragma omp simd reduction(+ : total)
            for (number s = 0; s < slots; s++) {
                p[s] = exponential(p[s] - most);
                total += p[s];
            }
            float share = 1.0f / total;
            for (number s = 0; s < slots; s++) p[s] *= share;
        }
        for (number i = 0; i < group * size; i++) sum[i] = 0;
        number seen[slots + 3], count = 0; /* what is hidden may hold anything: it is not multiplied by zero, it is not read */
        for (number s = 0; s < slots; s++)
            if (get(hide[s]) >= 0) seen[count++] = s;
        for (number n = 0; n < count; n += 4) {
            const real *v[4];
            for (number j = 0; j < 4; j++) v[j] = value + seen[n + j < count ? n + j : n] * size;
            for (number g = 0; g < group; g++) {
                float p[4], *to = sum + g * size;
                for (number j = 0; j < 4; j++) p[j] = n + j < count ? score[g * slots + seen[n + j]] : 0;
#pragma omp simd
                for (number i = 0; i < size; i++)
                    to[i] += p[0] * get(v[0][i]) + p[1] * get(v[1][i]) + p[2] * get(v[2][i]) + p[3] * get(v[3][i]);
            }
        }
        for (number i = 0; i < group * size; i++) mixed[(b * heads + k * group) * size + i] = put(sum[i]);
    }
}
