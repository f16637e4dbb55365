/* What PyTorch does in several passes over memory, each in one. `maths/kernels.py` compiles the C files beside it at their first use,
   once for bfloat16 (-DBFLOAT16) and once for float32; without a compiler the same is done by PyTorch's own operations.

   Everything is contiguous and row-major. A row is one thread's work, so results do not depend on the number of threads, but for the
   sums over rows in *_backward, which are made by thread: `partial` has a row for each of `threads`. */

#include "kernels.h"

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
