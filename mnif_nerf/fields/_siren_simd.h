/* The vectorised pieces of the SIREN kernel, for one instruction set.
 *
 * _siren_kernel.c includes this file once per instruction set, with
 *   NAME(x)  x with the instruction set's suffix,
 *   TARGET   the function attribute that turns the instruction set on,
 *   LANES    floats per register,
 *   COLUMNS  registers per tile row, so that TILE_ROWS * COLUMNS accumulators fit the register file,
 *   TALL_COLUMNS  the same for tiles of TALL_ROWS rows, at narrow layers.
 *
 * Buffers are point-major, [points, features], with features padded by zeros to a multiple of 16: then all three
 * products of training (forward, gradient of the inputs, gradient of the weights) are sums of outer products whose
 * vectors run along features, and nothing is ever transposed.
 */

typedef float NAME(vec) __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef float NAME(quad) __attribute__((vector_size(16), aligned(4), may_alias));

/* c[r, :] = init[r, :] + sum_k a[r, k] * b[k, :] for one tile, and a second such sum of the same depth and strides
 * where `a2` is not NULL; rows and columns are constants at every call. */
INLINE TARGET void NAME(tile)(
    const int rows, const int columns, ptrdiff_t depth, const float *a, ptrdiff_t a_row, ptrdiff_t a_k,
    const float *b, ptrdiff_t b_k, const float *a2, const float *b2, const float *init, ptrdiff_t init_row, float *c,
    ptrdiff_t c_row)
{
    NAME(vec) sum[TALL_ROWS][COLUMNS];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < columns; v++)
            sum[r][v] = *(const NAME(vec) *)(init + r * init_row + v * LANES);
    for (;;) {
        for (ptrdiff_t k = 0; k < depth; k++) {
            NAME(vec) row[COLUMNS];
            UNROLL for (int v = 0; v < columns; v++)
                row[v] = *(const NAME(vec) *)(b + k * b_k + v * LANES);
            UNROLL for (int r = 0; r < rows; r++) {
                const float scale = a[r * a_row + k * a_k];
                UNROLL for (int v = 0; v < columns; v++)
                    sum[r][v] += scale * row[v];
            }
        }
        if (!a2)
            break;
        a = a2;
        b = b2;
        a2 = NULL;
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < columns; v++)
            *(NAME(vec) *)(c + r * c_row + v * LANES) = sum[r][v];
}

#define TILE(R, C) NAME(tile)(R, C, depth, a, a_row, a_k, b, b_k, a2, b2, init, init_row, c, c_row)
#define TILE_OF_ROWS(R)                                                                                              \
    switch (columns) {                                                                                               \
    case 1: TILE(R, 1); break;                                                                                       \
    case 2: TILE(R, 2); break;                                                                                       \
    case 3: TILE(R, 3); break;                                                                                       \
    default: TILE(R, COLUMNS); break;                                                                                \
    }

static TARGET void NAME(any_tile)(int rows, int columns, ptrdiff_t depth, const float *a, ptrdiff_t a_row,
                                  ptrdiff_t a_k, const float *b, ptrdiff_t b_k, const float *a2, const float *b2,
                                  const float *init, ptrdiff_t init_row, float *c, ptrdiff_t c_row)
{
    switch (rows) {
    case 1: TILE_OF_ROWS(1) break;
    case 2: TILE_OF_ROWS(2) break;
    case 3: TILE_OF_ROWS(3) break;
    case TILE_ROWS: TILE_OF_ROWS(TILE_ROWS) break;
    default: /* less than COLUMNS columns leave registers for more rows */
        switch (columns) {
        case 1: TILE(TALL_ROWS, 1); break;
        case 2: TILE(TALL_ROWS, 2); break;
        default: TILE(TALL_ROWS, TALL_COLUMNS); break;
        }
    }
}

/* c = init + a b (+ a2 b2) for `rows` rows and `width` (a multiple of 16) columns; init may be c, or one row
 * (init_row = 0). a2 and b2 are laid out like a and b, or NULL. */
static TARGET void NAME(product)(ptrdiff_t rows, ptrdiff_t width, ptrdiff_t depth, const float *a, ptrdiff_t a_row,
                                 ptrdiff_t a_k, const float *b, ptrdiff_t b_k, const float *a2, const float *b2,
                                 const float *init, ptrdiff_t init_row, float *c, ptrdiff_t c_row)
{
    for (ptrdiff_t at = 0; at < width;) {
        const ptrdiff_t left = (width - at) / LANES;
        const int columns = left < COLUMNS ? (int)left : COLUMNS;
        int count;
        for (ptrdiff_t r = 0; r < rows; r += count) {
            count = rows - r < TILE_ROWS ? (int)(rows - r) : TILE_ROWS;
            if (columns <= TALL_COLUMNS && rows - r >= TALL_ROWS)
                count = TALL_ROWS;
            NAME(any_tile)(count, columns, depth, a + r * a_row, a_row, a_k, b + at, b_k, a2 ? a2 + r * a_row : NULL,
                           a2 ? b2 + at : NULL, init + r * init_row + at, init_row, c + r * c_row + at, c_row);
        }
        at += columns * LANES;
    }
}

#undef TILE
#undef TILE_OF_ROWS

/* The output layer: `outputs` is a small multiple of 4, too narrow for whole registers.
 * c[p, o] = init[p, o] + sum_k a[p, k] * b[k, o], eight points at a time to hide the latency of the additions. */
static TARGET void NAME(narrow_product)(ptrdiff_t points, ptrdiff_t outputs, ptrdiff_t depth, const float *a,
                                        ptrdiff_t a_row, const float *b, const float *init, ptrdiff_t init_row,
                                        float *c)
{
    for (ptrdiff_t o = 0; o < outputs; o += 4) {
        ptrdiff_t p = 0;
        for (; p + 8 <= points; p += 8) {
            NAME(quad) sum[8];
            UNROLL for (int r = 0; r < 8; r++) sum[r] = *(const NAME(quad) *)(init + (p + r) * init_row + o);
            for (ptrdiff_t k = 0; k < depth; k++) {
                const NAME(quad) row = *(const NAME(quad) *)(b + k * outputs + o);
                UNROLL for (int r = 0; r < 8; r++) sum[r] += a[(p + r) * a_row + k] * row;
            }
            UNROLL for (int r = 0; r < 8; r++) *(NAME(quad) *)(c + (p + r) * outputs + o) = sum[r];
        }
        for (; p < points; p++) {
            NAME(quad) sum = *(const NAME(quad) *)(init + p * init_row + o);
            for (ptrdiff_t k = 0; k < depth; k++)
                sum += a[p * a_row + k] * *(const NAME(quad) *)(b + k * outputs + o);
            *(NAME(quad) *)(c + p * outputs + o) = sum;
        }
    }
}

/* value[i] = sin(value[i]). */
static TARGET void NAME(sine)(float *restrict value, ptrdiff_t count)
{
    for (ptrdiff_t i = 0; i < count; i++)
        value[i] = sine_of(value[i]);
}

/* value[i] = sin(value[i]) and cosine[i] = cos(value[i]). */
static TARGET void NAME(sine_cosine)(float *restrict value, float *restrict cosine, ptrdiff_t count)
{
    for (ptrdiff_t i = 0; i < count; i++)
        sine_cosine_of(value[i], value + i, cosine + i);
}

/* value[i] *= factor[i]. */
static TARGET void NAME(multiply)(float *restrict value, const float *restrict factor, ptrdiff_t count)
{
    for (ptrdiff_t i = 0; i < count; i++)
        value[i] *= factor[i];
}

/* For a pre-activation u and its derivative u' along a direction (in `slope`): value = sin u, cosine = cos u,
 * slope = cos u u' (the derivative of the value), bend = sin u u' (of the cosine, but for the sign). */
static TARGET void NAME(sine_slope)(float *restrict value, float *restrict cosine, float *restrict slope,
                                    float *restrict bend, ptrdiff_t count)
{
    for (ptrdiff_t i = 0; i < count; i++) {
        float sine, cos;
        sine_cosine_of(value[i], &sine, &cos);
        bend[i] = sine * slope[i];
        slope[i] = cos * slope[i];
        value[i] = sine;
        cosine[i] = cos;
    }
}

/* Back through a sine: delta' = delta' cos u - delta sin u u', and delta = delta cos u. */
static TARGET void NAME(multiply_slope)(float *restrict delta, float *restrict delta_slope,
                                        const float *restrict cosine, const float *restrict bend, ptrdiff_t count)
{
    for (ptrdiff_t i = 0; i < count; i++) {
        delta_slope[i] = delta_slope[i] * cosine[i] - delta[i] * bend[i];
        delta[i] *= cosine[i];
    }
}

/* value[i] = exp(value[i]). */
static TARGET void NAME(exponential)(float *value, ptrdiff_t count)
{
    for (ptrdiff_t i = 0; i < count; i++)
        value[i] = exp_of(value[i]);
}

/* The head "radiance" at points of raw values [count, 4]: three rows of colours, densities and their derivatives. */
static TARGET void NAME(radiance)(const struct rays *rays, const float *raw, float *restrict colors,
                                  float *restrict density, float *restrict slope, ptrdiff_t count)
{
    const float scale = rays->density_scale, gain = rays->density_gain, shift = rays->density_shift;
    for (ptrdiff_t i = 0; i < count; i++)
        density[i] = gain * raw[4 * i + 3] - shift;
    for (ptrdiff_t i = 0; i < count; i++) {
        const float u = density[i], e = exp_of(u > 0.0f ? -u : u), share = (u < 0.0f ? e : 1.0f) / (1.0f + e);
        density[i] = scale * ((u < 0.0f ? 0.0f : u) + log1p_of(e));
        slope[i] = scale * gain * share;
    }
    for (int c = 0; c < 3; c++)
        for (ptrdiff_t i = 0; i < count; i++)
            colors[c * BLOCK + i] = logistic_of(raw[4 * i + c]);
}

static const struct operations NAME(operations) = {
    NAME(product), NAME(narrow_product), NAME(sine), NAME(sine_cosine), NAME(multiply), NAME(sine_slope),
    NAME(multiply_slope), NAME(exponential), NAME(radiance),
};

#undef NAME
#undef TARGET
#undef LANES
#undef COLUMNS
#undef TALL_COLUMNS
