/* Sine and cosine of one number, written so that compilers vectorise loops over them.
 *
 * For |x| up to 1e4 the absolute error of the sine alone is below 2e-7, and that of the two together, which gradients
 * are made of, below 1e-7; it grows slowly beyond. Any finite number gives a value in [-1, 1], and infinities and NaN
 * give NaN. Must not be compiled with -ffast-math, which would undo the rounding.
 * The polynomials are minimax fits on the reduced range.
 */

#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

#define ROUND 12582912.0f /* 1.5 * 2^23: adding it rounds to an integer, which the low bits then hold */

INLINE int32_t bits_of(float x)
{
    int32_t i;
    memcpy(&i, &x, sizeof i);
    return i;
}

INLINE float float_of(int32_t i)
{
    float x;
    memcpy(&x, &i, sizeof x);
    return x;
}

/* Absurdly large arguments leave nothing to reduce to: keep the polynomials bounded. A NaN passes through. */
INLINE float clamp(float x, float limit)
{
    x = x > limit ? limit : x;
    return x < -limit ? -limit : x;
}

/* x minus a multiple of pi (pi/2), in three parts; the first two have few bits, so that their products are exact. */
INLINE float sine_of(float x)
{
    const float turned = x * 0.31830988618f + ROUND, n = turned - ROUND;
    float r = ((x - n * 3.140625f) - n * 9.675025939941406e-4f) - n * 1.5099580252808664e-7f;
    r = clamp(r, 1.5716f);
    const float s = r * r;
    const float p = ((2.5997513e-06f * s - 1.980648e-04f) * s + 8.333015e-03f) * s - 1.6666657e-01f;
    return float_of(bits_of(r + r * s * p) ^ (int32_t)((uint32_t)bits_of(turned) << 31));
}

INLINE void sine_cosine_of(float x, float *sine, float *cosine)
{
    const float turned = x * 0.63661977237f + ROUND, n = turned - ROUND;
    float r = ((x - n * 1.5703125f) - n * 4.837512969970703e-4f) - n * 7.549790126404332e-8f;
    r = clamp(r, 0.7862f);
    const float s = r * r;
    const float sin_r = r + r * s * ((-1.9494949e-04f * s + 8.331973e-03f) * s - 1.6666651e-01f);
    const float cos_r = (1.0f - 0.5f * s) + s * s * ((2.443753e-05f * s - 1.3887360e-03f) * s + 4.1666647e-02f);
    const uint32_t quarter = (uint32_t)bits_of(turned);
    const int32_t odd = -(int32_t)(quarter & 1), swap = (bits_of(sin_r) ^ bits_of(cos_r)) & odd;
    *sine = float_of((bits_of(sin_r) ^ swap) ^ (int32_t)((quarter & 2) << 30));
    *cosine = float_of((bits_of(cos_r) ^ swap) ^ (int32_t)(((quarter + 1) & 2) << 30));
}
