/* What PyTorch does in several passes over memory, each in one. `maths/kernels.py` compiles this file at its first use, once for
   bfloat16 (-DBFLOAT16) and once for float32; without a compiler the same is done by PyTorch's own operations.

   `real` is the type of activations; sums, norms, softmax and the residual stream are float32. Everything is contiguous and row-major.
   A row is one thread's work, so results do not depend on the number of threads, but for the sums over rows in *_backward, which are
   made by thread: `partial` has a row for each of `threads`. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef _OPENMP
int omp_get_thread_num(void);
#else
static int omp_get_thread_num(void) { return 0; }
#endif

typedef int64_t number;

#ifdef BFLOAT16
typedef uint16_t real;
static inline float get(real x) {
    uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
static inline real put(float value) { /* to the nearest, ties to even */
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return (real)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
#else
typedef float real;
static inline float get(real x) { return x; }
static inline real put(float value) { return value; }
#endif

/* exp to about 1e-7 of its value, 0 below -87: 2^n · e^r with a polynomial in r, |r| <= ln 2 / 2. A nan stays one. */
static inline float exponential(float x) {
    float clamped = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    float n = rintf(clamped * 1.44269504f);
    float r = clamped - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.0f / 5040;
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r * r + r + 1.0f;
    int32_t bits = ((int32_t)n + 127) << 23;
    float power;
    memcpy(&power, &bits, 4);
    return x < -87.0f ? 0.0f : p * power;
}

/* ------------------------------------------------------------------------- RMSNorm of a sum: s = x + delta, y = s / rms(s) · w */

void norm_forward(number rows, number size, const float *x, const real *delta, const float *weight, float eps, float *sum, real *y,
                  float *inverse) {
#pragma omp parallel for schedule(static)
    for (number r = 0; r < rows; r++) {
        const float *from = x + r * size;
        float squares = 0;
        if (delta) {
            const real *add = delta + r * size;
            float *to = sum + r * size;
#pragma omp simd reduction(+ : squares)
            for (number i = 0; i < size; i++) {
                float value = from[i] + get(add[i]);
                to[i] = value;
                squares += value * value;
            }
            from = to;
        } else {
#pragma omp simd reduction(+ : squares)
            for (number i = 0; i < size; i++) squares += from[i] * from[i];
        }
        float scale = 1.0f / sqrtf(squares / size + eps);
        inverse[r] = scale;
        real *out = y + r * size;
#pragma omp simd
        for (number i = 0; i < size; i++) out[i] = put(from[i] * scale * weight[i]);
    }
}

/* grad_x = grad_sum + d y / d s, which is also delta's; grad_sum may be absent. */
void norm_backward(number rows, number size, const real *grad_y, const float *grad_sum, const float *sum, const float *weight,
                   const float *inverse, float *grad_x, real *grad_delta, number threads, float *partial) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (number r = 0; r < rows; r++) {
        const real *gy = grad_y + r * size;
        const float *s = sum + r * size;
        float *gx = grad_x + r * size, *gw = partial + omp_get_thread_num() * size;
        float scale = inverse[r], dot = 0;
#pragma omp simd reduction(+ : dot)
        for (number i = 0; i < size; i++) dot += get(gy[i]) * weight[i] * s[i];
        float mean = dot * scale * scale * scale / size;
#pragma omp simd
        for (number i = 0; i < size; i++) {
            float g = get(gy[i]);
            gw[i] += g * s[i] * scale;
            gx[i] = g * weight[i] * scale - s[i] * mean;
        }
        if (grad_sum) {
            const float *gs = grad_sum + r * size;
#pragma omp simd
            for (number i = 0; i < size; i++) gx[i] += gs[i];
        }
        if (grad_delta) {
            real *gd = grad_delta + r * size;
#pragma omp simd
            for (number i = 0; i < size; i++) gd[i] = put(gx[i]);
        }
    }
}

/* ------------------------ from a projection's rows to heads: [B, T, heads · E] with a stride -> [B, heads, T, E], normed and rotated

   `weight` [E]: RMSNorm within a head (Qwen3), or absent. `cos`, `sin` [positions, E / 2]: rotary embedding, or absent.
   `positions` [B, T], or absent for 0, 1, 2, … */

void heads_forward(number batch, number time, number heads, number size, number stride, const real *x, const float *weight, float eps,
                   const float *cos, const float *sin, const int64_t *positions, real *out, float *inverse) {
    number half = size / 2;
#pragma omp parallel for schedule(static)
    for (number bt = 0; bt < batch * time; bt++) {
        number b = bt / time, t = bt % time, position = positions ? positions[bt] : t;
        for (number h = 0; h < heads; h++) {
            const real *from = x + bt * stride + h * size;
            real *to = out + ((b * heads + h) * time + t) * size;
            if (!cos) {
                memcpy(to, from, size * sizeof(real));
                continue;
            }
            const float *c = cos + position * half, *s = sin + position * half;
            float scale = 1;
            if (weight) {
                float squares = 0;
#pragma omp simd reduction(+ : squares)
                for (number i = 0; i < size; i++) squares += get(from[i]) * get(from[i]);
                scale = 1.0f / sqrtf(squares / size + eps);
                inverse[bt * heads + h] = scale;
            }
#pragma omp simd
            for (number i = 0; i < half; i++) {
                float a = get(from[i]) * scale * (weight ? weight[i] : 1);
                float d = get(from[half + i]) * scale * (weight ? weight[half + i] : 1);
                to[i] = put(a * c[i] - d * s[i]);
                to[half + i] = put(d * c[i] + a * s[i]);
            }
        }
    }
}

void heads_backward(number batch, number time, number heads, number size, number stride, const real *grad_out, const real *x,
                    const float *weight, const float *inverse, const float *cos, const float *sin, const int64_t *positions,
                    real *grad_x, number threads, float *partial) {
    number half = size / 2;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (number bt = 0; bt < batch * time; bt++) {
        number b = bt / time, t = bt % time, position = positions ? positions[bt] : t;
        for (number h = 0; h < heads; h++) {
            const real *from = grad_out + ((b * heads + h) * time + t) * size;
            real *to = grad_x + bt * stride + h * size;
            if (!cos) {
                memcpy(to, from, size * sizeof(real));
                continue;
            }
            const float *c = cos + position * half, *s = sin + position * half;
            if (!weight) {
#pragma omp simd
                for (number i = 0; i < half; i++) {
                    float a = get(from[i]), d = get(from[half + i]);
                    to[i] = put(a * c[i] + d * s[i]);
                    to[half + i] = put(d * c[i] - a * s[i]);
                }
                continue;
            }
            const real *in = x + bt * stride + h * size;
            float *gw = partial + omp_get_thread_num() * size;
            float scale = inverse[bt * heads + h], dot = 0, turned[size];
#pragma omp simd reduction(+ : dot)
            for (number i = 0; i < half; i++) {
                float a = get(from[i]), d = get(from[half + i]), x0 = get(in[i]), x1 = get(in[half + i]);
                float g0 = a * c[i] + d * s[i], g1 = d * c[i] - a * s[i];
                gw[i] += g0 * x0 * scale;
                gw[half + i] += g1 * x1 * scale;
                turned[i] = g0 * weight[i];
                turned[half + i] = g1 * weight[half + i];
                dot += turned[i] * x0 + turned[half + i] * x1;
            }
            float mean = dot * scale * scale * scale / size;
#pragma omp simd
            for (number i = 0; i < size; i++) to[i] = put(turned[i] * scale - get(in[i]) * mean);
        }
    }
}

/* [B, heads, T, E] -> [B, T, heads · E], and back */

void merge_heads(number batch, number time, number heads, number size, const real *x, real *out) {
#pragma omp parallel for schedule(static)
    for (number bt = 0; bt < batch * time; bt++)
        for (number h = 0; h < heads; h++)
            memcpy(out + (bt * heads + h) * size, x + ((bt / time * heads + h) * time + bt % time) * size, size * sizeof(real));
}

/* ------------------------------------------------- softmax(scale · scores) over what a query may see, in place: [B, heads, T, S]

   `visible` [B, T, S], or absent where a query sees all keys up to its own place. */

void softmax_forward(number batch, number heads, number time, number keys, float scale, const uint8_t *visible, real *scores) {
#pragma omp parallel for schedule(static)
    for (number r = 0; r < batch * heads * time; r++) {
        real *row = scores + r * keys;
        number t = r % time, count = visible ? keys : t + 1;
        const uint8_t *seen = visible ? visible + (r / (heads * time) * time + t) * keys : 0;
        while (seen && count && !seen[count - 1]) count--; /* what comes last and is hidden costs nothing */
        float most = -INFINITY, total = 0, values[keys];
#pragma omp simd reduction(max : most)
        for (number i = 0; i < count; i++) {
            values[i] = seen && !seen[i] ? -INFINITY : get(row[i]) * scale;
            most = values[i] > most ? values[i] : most;
        }
#pragma omp simd reduction(+ : total)
        for (number i = 0; i < count; i++) {
            values[i] = exponential(values[i] - most);
            total += values[i];
        }
        float share = 1.0f / total;
#pragma omp simd
        for (number i = 0; i < count; i++) row[i] = put(values[i] * share);
        for (number i = count; i < keys; i++) row[i] = 0;
    }
}

/* grad becomes that of the scores: p (g - Σ g p) · scale */
void softmax_backward(number rows, number keys, float scale, const real *probs, real *grad) {
#pragma omp parallel for schedule(static)
    for (number r = 0; r < rows; r++) {
        const real *p = probs + r * keys;
        real *g = grad + r * keys;
        float dot = 0;
#pragma omp simd reduction(+ : dot)
        for (number i = 0; i < keys; i++) dot += get(p[i]) * get(g[i]);
#pragma omp simd
        for (number i = 0; i < keys; i++) g[i] = put(get(p[i]) * (get(g[i]) - dot) * scale);
    }
}

/* -------------------------------------------------------------------- silu(gate) · up, gate and up side by side: [N, 2 F] -> [N, F] */

void swiglu_forward(number rows, number size, const real *gate_up, real *out) {
#pragma omp parallel for schedule(static)
    for (number r = 0; r < rows; r++) {
        const real *gate = gate_up + r * 2 * size, *up = gate + size;
        real *to = out + r * size;
#pragma omp simd
        for (number i = 0; i < size; i++) {
            float g = get(gate[i]);
            to[i] = put(g / (1.0f + exponential(-g)) * get(up[i]));
        }
    }
}

void swiglu_backward(number rows, number size, const real *grad_out, const real *gate_up, real *grad) {
#pragma omp parallel for schedule(static)
    for (number r = 0; r < rows; r++) {
        const real *gate = gate_up + r * 2 * size, *up = gate + size, *from = grad_out + r * size;
        real *grad_gate = grad + r * 2 * size, *grad_up = grad_gate + size;
#pragma omp simd
        for (number i = 0; i < size; i++) {
            float g = get(gate[i]), go = get(from[i]), sigmoid = 1.0f / (1.0f + exponential(-g));
            grad_up[i] = put(go * g * sigmoid);
            grad_gate[i] = put(go * get(up[i]) * sigmoid * (1.0f + g * (1.0f - sigmoid)));
        }
    }
}

/* --------------------------------------------------- log softmax(logits / temperature) at the targets, and its gradient, in place */

void logprobs_forward(number rows, number size, float sharpness, const real *logits, const int64_t *targets, float *logp, float *total) {
#pragma omp parallel for schedule(static)
    for (number r = 0; r < rows; r++) {
        const real *row = logits + r * size;
        float most = -INFINITY, sum = 0;
#pragma omp simd reduction(max : most)
        for (number i = 0; i < size; i++) {
            float value = get(row[i]);
            most = value > most ? value : most;
        }
#pragma omp simd reduction(+ : sum)
        for (number i = 0; i < size; i++) sum += exponential((get(row[i]) - most) * sharpness);
        total[r] = most * sharpness + logf(sum);
        logp[r] = get(row[targets[r]]) * sharpness - total[r];
    }
}

void logprobs_backward(number rows, number size, float sharpness, real *logits, const int64_t *targets, const float *total,
                       const float *grad) {
#pragma omp parallel for schedule(static)
    for (number r = 0; r < rows; r++) {
        real *row = logits + r * size;
        float g = grad[r] * sharpness, own = get(row[targets[r]]) * sharpness;
#pragma omp simd
        for (number i = 0; i < size; i++) row[i] = put(-g * exponential(get(row[i]) * sharpness - total[r]));
        row[targets[r]] = put(g * (1.0f - exponential(own - total[r])));
    }
}

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
