/* What the kernels share. `real` is the type of activations; sums, norms, softmax and the residual stream are float32. */

#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef _OPENMP
int omp_get_thread_num(void);
#else
static int omp_get_thread_num(void) { return 0; }
#endif

#if defined(BFLOAT16) && defined(__AVX512BF16__)
#include <immintrin.h>
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

/* ------------------------------------------------------------------------------------------------------ products in registers */

/* A word is what a lane multiplies at once: a float32, or two bfloat16 that are neighbours along the sum. */
typedef uint32_t word __attribute__((may_alias));
enum { PAIR = sizeof(word) / sizeof(real) };

#ifdef __AVX512F__
enum { LANES = 16 };
#else
enum { LANES = 8 };
#endif
#define VECTOR(type, size) type __attribute__((vector_size(LANES * size), aligned(size), may_alias))
typedef VECTOR(float, 4) floats;
typedef VECTOR(uint32_t, 4) words;

/* sum + a · b */
static inline floats dot(floats sum, words a, words b) {
#if defined(BFLOAT16) && defined(__AVX512BF16__)
    return (floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#elif defined(BFLOAT16)
    sum += (floats)(a << 16) * (floats)(b << 16);
    return sum + (floats)(a & 0xffff0000u) * (floats)(b & 0xffff0000u);
#else
    return sum + (floats)a * (floats)b;
#endif
}

void swiglu_forward(number rows, number size, const real *gate_up, real *out);
void turn(number size, const real *from, const float *weight, float eps, const float *cos, const float *sin, real *to);
