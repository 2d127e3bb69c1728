/* Exponential, logarithm and logistic function of one number, written so that compilers vectorise loops over them.
 *
 * Relative errors are below 2e-7; NaN gives NaN. The polynomials are minimax fits on the reduced range. Include
 * _siren_sine.h first.
 */

/* e^x; beyond the range of normal numbers the value at its end. */
INLINE float exp_of(float x)
{
    x = x > 88.0f ? 88.0f : x;
    x = x < -87.0f ? -87.0f : x;
    const float turned = x * 1.44269504f + ROUND, n = turned - ROUND;
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f; /* the first part of ln 2 has few bits */
    const float p = (((1.3934544e-03f * r + 8.3637765e-03f) * r + 4.1666457e-02f) * r + 1.6666573e-01f) * r + 0.5f;
    return (1.0f + (r + r * r * p)) * float_of((int32_t)(((uint32_t)bits_of(turned) + 127u) << 23));
}

/* log(1 + e) for e in [0, 1], as 2 atanh(e / (2 + e)). */
INLINE float log1p_of(float e)
{
    const float s = e / (2.0f + e), z = s * s;
    const float p = ((1.3433769e-01f * z + 1.4116979e-01f) * z + 2.0003835e-01f) * z + 3.3333320e-01f;
    return 2.0f * (s + s * z * p);
}

/* 1 / (1 + e^-x). */
INLINE float logistic_of(float x)
{
    return 1.0f / (1.0f + exp_of(-x));
}
