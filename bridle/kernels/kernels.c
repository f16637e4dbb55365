/* What PyTorch does in several passes over memory, each in one. `kernels/kernels.py` compiles the C files beside it at their first use,
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
