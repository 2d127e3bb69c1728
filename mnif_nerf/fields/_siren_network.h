/* One thread's buffers, and a block of points through a network: values, gradients, losses. */

/* Activations are point-major, [BLOCK, padded features]. A slope is the derivative of what it is named after along
 * the direction of a second-order call, and only there. */
struct buffers {
    int64_t instance;                          /* whose weights are unpacked here; -1: none */
    float *columns[MAX_LAYERS];                /* weights transposed, [in, padded out] */
    float *rows[MAX_LAYERS];                   /* weights, [out, padded in] (gradient only) */
    float *bias[MAX_LAYERS];
    float *value[MAX_LAYERS + 1];              /* activations after layer l */
    float *cosine[MAX_LAYERS + 1];             /* their derivative (gradient only) */
    float *columns_slope[MAX_LAYERS], *rows_slope[MAX_LAYERS], *bias_slope[MAX_LAYERS];
    float *value_slope[MAX_LAYERS + 1];
    float *bend[MAX_LAYERS + 1];               /* minus the slope of the cosine */
    float *grad_weights[MAX_LAYERS];           /* [out, padded in]; the first layer: [in, padded out] */
    float *grad_bias[MAX_LAYERS];
    float *zeros;                              /* one row */
    float *curvature;                          /* one row: second derivative of a point's loss */
    float *delta[2];                           /* gradient of a layer's pre-activations */
    float *delta_slope[2];
    float *points, *light;                     /* of rays: see _siren_rays.h */
    double losses[TERMS];                      /* of the blocks of this item so far */
    int64_t width[MAX_LAYERS + 1];             /* padded sizes */
    size_t grads_from, grads_to;               /* where the gradient lies in the arena */
};

#include "_siren_rays.h"

static float *take(float *arena, size_t *used, int64_t rows, int64_t width)
{
    float *at = arena ? arena + *used : NULL;
    *used += (size_t)(rows * width + PAD - 1) / PAD * PAD;
    return at;
}

/* Lays out the buffers in `arena`; returns the floats needed (arena may be NULL to ask for just that). */
static size_t plan(const struct call *call, struct buffers *to, float *arena)
{
    const int layers = call->layers, gradient = call->mode != FORWARD, second = call->mode == SECOND;
    size_t used = 0;
    int64_t widest = 0;
    for (int l = 0; l <= layers; l++) {
        const int64_t pad = l == layers ? 4 : PAD;
        to->width[l] = (call->sizes[l] + pad - 1) / pad * pad;
        if (to->width[l] > widest)
            widest = to->width[l];
    }
    for (int l = 0; l < layers; l++) {
        const int64_t in = call->sizes[l], out = call->sizes[l + 1], *width = to->width + l;
        to->columns[l] = take(arena, &used, in, width[1]);
        to->bias[l] = take(arena, &used, 1, width[1]);
        to->rows[l] = gradient && l > 0 ? take(arena, &used, out, width[0]) : NULL;
        /* The forward pass needs a layer's input only until its output is there: two buffers take turns. */
        to->value[l + 1] = gradient || l < 2 ? take(arena, &used, BLOCK, widest) : to->value[l - 1];
        if (gradient)
            to->cosine[l + 1] = take(arena, &used, BLOCK, width[1]);
        if (!second)
            continue;
        to->columns_slope[l] = take(arena, &used, in, width[1]);
        to->bias_slope[l] = take(arena, &used, 1, width[1]);
        to->rows_slope[l] = l > 0 ? take(arena, &used, out, width[0]) : NULL;
        to->value_slope[l + 1] = take(arena, &used, BLOCK, width[1]);
        to->bend[l + 1] = take(arena, &used, BLOCK, width[1]);
    }
    for (int i = 0; i < 2; i++) {
        to->delta[i] = take(arena, &used, gradient ? BLOCK : 0, widest);
        to->delta_slope[i] = take(arena, &used, second ? BLOCK : 0, widest);
    }
    to->zeros = take(arena, &used, 1, widest);
    to->curvature = take(arena, &used, 1, widest);
    to->points = take(arena, &used, call->rays ? BLOCK : 0, 3);
    to->light = take(arena, &used, call->rays ? LIGHT_ROWS : 0, BLOCK);
    to->grads_from = used;
    for (int l = 0; gradient && l < layers; l++) {
        to->grad_weights[l] = l == 0 ? take(arena, &used, call->sizes[0], to->width[1])
                                     : take(arena, &used, call->sizes[l + 1], to->width[l]);
        to->grad_bias[l] = take(arena, &used, 1, to->width[l + 1] + PAD);
    }
    to->grads_to = used;
    return used;
}

/* to[i, o] = from[o, i], four by four. */
static void transpose(int64_t out, int64_t in, const float *from, float *to, int64_t to_row)
{
    typedef float quad __attribute__((vector_size(16), aligned(4), may_alias));
    int64_t o = 0;
    for (; o + 4 <= out; o += 4) {
        int64_t i = 0;
        for (; i + 4 <= in; i += 4) {
            const quad a = *(const quad *)(from + o * in + i), b = *(const quad *)(from + (o + 1) * in + i);
            const quad c = *(const quad *)(from + (o + 2) * in + i), d = *(const quad *)(from + (o + 3) * in + i);
            const quad ab = SHUFFLE(a, b, 0, 4, 1, 5), cd = SHUFFLE(c, d, 0, 4, 1, 5);
            const quad ab2 = SHUFFLE(a, b, 2, 6, 3, 7), cd2 = SHUFFLE(c, d, 2, 6, 3, 7);
            *(quad *)(to + i * to_row + o) = SHUFFLE(ab, cd, 0, 1, 4, 5);
            *(quad *)(to + (i + 1) * to_row + o) = SHUFFLE(ab, cd, 2, 3, 6, 7);
            *(quad *)(to + (i + 2) * to_row + o) = SHUFFLE(ab2, cd2, 0, 1, 4, 5);
            *(quad *)(to + (i + 3) * to_row + o) = SHUFFLE(ab2, cd2, 2, 3, 6, 7);
        }
        for (; i < in; i++)
            for (int64_t r = o; r < o + 4; r++)
                to[i * to_row + r] = from[r * in + i];
    }
    for (; o < out; o++)
        for (int64_t i = 0; i < in; i++)
            to[i * to_row + o] = from[o * in + i];
}

static void unpack_layer(const struct call *call, const struct buffers *own, int l, const float *weights,
                         const float *bias, float *columns, float *rows, float *to_bias)
{
    const int64_t in = call->sizes[l], out = call->sizes[l + 1];
    memcpy(to_bias, bias, (size_t)out * sizeof(float));
    transpose(out, in, weights, columns, own->width[l + 1]);
    for (int64_t o = 0; rows && o < out; o++)
        memcpy(rows + o * own->width[l], weights + o * in, (size_t)in * sizeof(float));
}

static void unpack(const struct call *call, struct buffers *own, int64_t instance)
{
    if (own->instance == instance)
        return;
    own->instance = instance;
    for (int l = 0; l < call->layers; l++) {
        unpack_layer(call, own, l, call->weights[l] + instance * call->weight_batch[l],
                     call->biases[l] + instance * call->bias_batch[l], own->columns[l], own->rows[l], own->bias[l]);
        if (call->mode == SECOND)
            unpack_layer(call, own, l, call->along_weights[l] + instance * call->along_weight_batch[l],
                         call->along_biases[l] + instance * call->along_bias_batch[l], own->columns_slope[l],
                         own->rows_slope[l], own->bias_slope[l]);
    }
}

/* ---- forward ---- */

/* Through layer l; hidden layers and a final sine leave their sine in value[l + 1] (and cosine[l + 1]). */
static void layer_forward(const struct call *call, const struct operations *op, struct buffers *own, int l,
                          const float *x, int64_t count)
{
    const int last = l == call->layers - 1, second = call->mode == SECOND;
    const int64_t in = call->sizes[l], width = own->width[l + 1];
    const float *from = l ? own->value[l] : x, *from_slope = l ? own->value_slope[l] : NULL;
    const int64_t from_point = l ? own->width[l] : call->x_point, from_feature = l ? 1 : call->x_feature;
    float *to = own->value[l + 1], *slope = own->value_slope[l + 1];
    if (last) {
        op->narrow_product(count, width, in, from, own->width[l], own->columns[l], own->bias[l], 0, to);
        if (second) {
            op->narrow_product(count, width, in, from, own->width[l], own->columns_slope[l], own->bias_slope[l], 0,
                               slope);
            op->narrow_product(count, width, in, from_slope, own->width[l], own->columns[l], slope, width, slope);
        }
    } else {
        op->product(count, width, in, from, from_point, from_feature, own->columns[l], width, NULL, NULL,
                    own->bias[l], 0, to, width);
        if (second) /* the product rule: the slope of W h is W' h + W h' */
            op->product(count, width, in, from, from_point, from_feature, own->columns_slope[l], width, from_slope,
                        own->columns[l], own->bias_slope[l], 0, slope, width);
    }
    if (last && !call->final_sine)
        return;
    if (second)
        op->sine_slope(to, own->cosine[l + 1], slope, own->bend[l + 1], count * width);
    else if (call->mode == GRADIENT)
        op->sine_cosine(to, own->cosine[l + 1], count * width);
    else
        op->sine(to, count * width);
}

static void store_values(const struct call *call, const struct buffers *own, const float *values, int64_t instance,
                         int64_t first, int64_t count)
{
    const int64_t outputs = call->sizes[call->layers], width = own->width[call->layers];
    for (int64_t o = 0; o < outputs; o++)
        for (int64_t p = 0; p < count; p++)
            call->out[(instance * outputs + o) * call->points + first + p] = values[p * width + o];
}

static void block_forward(const struct call *call, const struct operations *op, struct buffers *own,
                          int64_t instance, int64_t first, int64_t count)
{
    for (int l = 0; l < call->layers; l++)
        layer_forward(call, op, own, l, call->x + instance * call->x_batch + first * call->x_point, count);
    store_values(call, own, own->value[call->layers], instance, first, count);
}

/* ---- backward ---- */

/* The loss of one point's colours (all outputs but the last, where there are any) and signed distance. What is
 * farther than the truncation only has to be at least as far on the right side. Returns the loss times `scale`. */
static double seed_distance(const struct call *call, const float *value, const float *target, float scale,
                            float *gradient, float *curvature)
{
    const int64_t colors = call->sizes[call->layers] - 1;
    const float bound = call->truncation, given = target[colors * call->target_output];
    const float wanted = given > bound ? bound : given < -bound ? -bound : given;
    const float error = -call->distance_scale * value[colors] - wanted; /* raw values are positive inside */
    const int far = (given >= bound && error > 0.0f) || (given <= -bound && error < 0.0f);
    double loss = far ? 0.0 : (double)(scale / bound * fabsf(error));
    gradient[colors] = far || error == 0.0f ? 0.0f
                                            : (error < 0.0f ? 1.0f : -1.0f) * scale * call->distance_scale / bound;
    curvature[colors] = isnan(error) ? error : 0.0f;
    if (isnan(error))
        gradient[colors] = error;
    const float weight = fabsf(given) < call->near_surface ? scale * call->color_weight / (float)colors : 0.0f;
    for (int64_t o = 0; o < colors; o++) {
        gradient[o] = curvature[o] = 0.0f;
        if (weight == 0.0f)
            continue;
        const float e = expf(-fabsf(value[o])), share = (value[o] < 0.0f ? e : 1.0f) / (1.0f + e);
        const float off = share - target[o * call->target_output], slope = share * (1.0f - share);
        loss += (double)(weight * off * off);
        gradient[o] = 2.0f * weight * off * slope;
        curvature[o] = 2.0f * weight * slope * (slope + off * (1.0f - 2.0f * share));
    }
    return loss;
}

/* Adds the block's share of a loss of signed distances; see `seed`. */
static void seed_distances(const struct call *call, struct buffers *own, int64_t instance, int64_t first,
                           int64_t count, float *delta, float *slope)
{
    const int64_t outputs = call->sizes[call->layers], width = own->width[call->layers];
    const float *value = own->value[call->layers], *value_slope = own->value_slope[call->layers];
    float *curvature = own->curvature;
    double loss = 0.0;
    for (int64_t p = 0; p < count; p++) {
        float scale = 1.0f / (float)call->points;
        if (call->point_weights)
            scale *= call->point_weights[instance * call->point_weight_batch +
                                         (first + p) * call->point_weight_point];
        const float *target = call->targets + instance * call->target_batch + (first + p) * call->target_point;
        loss += seed_distance(call, value + p * width, target, scale, delta + p * width, curvature);
        for (int64_t o = outputs; o < width; o++)
            delta[p * width + o] = 0.0f;
        for (int64_t o = 0; slope && o < width; o++)
            slope[p * width + o] = o < outputs ? curvature[o] * value_slope[p * width + o] : 0.0f;
    }
    own->losses[0] += loss;
}

/* Adds the block's share of the loss; its gradient in the values goes to delta, that gradient's slope to slope. */
static void seed(const struct call *call, const struct operations *op, struct buffers *own, int64_t instance,
                 int64_t first, int64_t count, float *delta, float *slope)
{
    const int64_t outputs = call->sizes[call->layers], width = own->width[call->layers];
    const float *value = own->value[call->layers], *value_slope = own->value_slope[call->layers];
    const float mean = 1.0f / (float)(outputs * call->points);
    double loss = 0.0;
    if (call->loss == SIGNED_DISTANCE) {
        seed_distances(call, own, instance, first, count, delta, slope);
        return;
    }
    if (call->loss == RENDERED) {
        seed_rendered(call, op, own, instance, first, count, delta);
        return;
    }
    for (int64_t p = 0; p < count; p++) {
        float scale = mean;
        if (call->point_weights)
            scale *= call->point_weights[instance * call->point_weight_batch +
                                         (first + p) * call->point_weight_point];
        for (int64_t o = 0; o < width; o++) {
            const int64_t at = p * width + o;
            float gradient = 0.0f, curvature = 0.0f;
            if (o < outputs && call->loss == NO_LOSS) {
                gradient = call->grad_out[(instance * outputs + o) * call->points + first + p];
            } else if (o < outputs) {
                const float v = value[at], target = call->targets[instance * call->target_batch +
                                                                  o * call->target_output +
                                                                  (first + p) * call->target_point];
                if (call->loss == SQUARED_ERROR) {
                    loss += (double)(scale * (v - target) * (v - target));
                    gradient = 2.0f * scale * (v - target);
                    curvature = 2.0f * scale;
                } else { /* the binary cross entropy of logits, written so that nothing overflows */
                    const float e = expf(-fabsf(v)), share = (v < 0.0f ? e : 1.0f) / (1.0f + e);
                    loss += (double)(scale * ((v > 0.0f ? v : 0.0f) - v * target + log1pf(e)));
                    gradient = scale * (share - target);
                    curvature = scale * share * (1.0f - share);
                }
            }
            delta[at] = gradient;
            if (slope)
                slope[at] = call->loss == NO_LOSS ? 0.0f : curvature * value_slope[at];
        }
    }
    own->losses[0] += loss;
}

static void grad_bias(const struct call *call, const struct operations *op, const struct buffers *own, int l,
                      int64_t count, const float *delta)
{
    static const float one = 1.0f;
    const int64_t width = own->width[l + 1];
    float *bias = own->grad_bias[l];
    if (l == call->layers - 1)
        for (int64_t p = 0; p < count; p++)
            for (int64_t o = 0; o < call->sizes[l + 1]; o++)
                bias[o] += delta[p * width + o];
    else
        op->product(1, width, count, &one, 0, 0, delta, width, NULL, NULL, bias, 0, bias, 0);
}

static void swap(float *pair[2])
{
    float *first = pair[0];
    pair[0] = pair[1];
    pair[1] = first;
}

static void block_backward(const struct call *call, const struct operations *op, struct buffers *own,
                           int64_t instance, int64_t first, int64_t count)
{
    const int layers = call->layers, needs_values = call->final_sine || call->loss != NO_LOSS;
    const int64_t *width = own->width;
    const float *x = call->rays ? points_of_block(call->rays, own, instance, first, count)
                                : call->x + instance * call->x_batch + first * call->x_point;
    for (int l = 0; l < layers - !needs_values; l++)
        layer_forward(call, op, own, l, x, count);
    seed(call, op, own, instance, first, count, own->delta[0], NULL);
    if (call->final_sine)
        op->multiply(own->delta[0], own->cosine[layers], count * width[layers]);
    for (int l = layers - 1; l >= 0; l--) {
        const int64_t out = call->sizes[l + 1], out_width = width[l + 1], in_width = width[l];
        float *grad = own->grad_weights[l], *delta = own->delta[0];
        grad_bias(call, op, own, l, count, delta);
        if (l == 0) {
            op->product(call->sizes[0], out_width, count, x, call->x_feature, call->x_point, delta, out_width, NULL,
                        NULL, grad, out_width, grad, out_width);
            break;
        }
        op->product(out, in_width, count, delta, 1, out_width, own->value[l], in_width, NULL, NULL, grad, in_width,
                    grad, in_width);
        op->product(count, in_width, out, delta, out_width, 1, own->rows[l], in_width, NULL, NULL, own->zeros, 0,
                    own->delta[1], in_width);
        op->multiply(own->delta[1], own->cosine[l], count * in_width);
        swap(own->delta);
    }
}

/* The derivative of block_backward along a direction of the weights: each of its products becomes two. */
static void block_second(const struct call *call, const struct operations *op, struct buffers *own,
                         int64_t instance, int64_t first, int64_t count)
{
    const int layers = call->layers;
    const int64_t *width = own->width;
    const float *x = call->x + instance * call->x_batch + first * call->x_point;
    for (int l = 0; l < layers; l++)
        layer_forward(call, op, own, l, x, count);
    if (call->out)
        store_values(call, own, own->value_slope[layers], instance, first, count);
    seed(call, op, own, instance, first, count, own->delta[0], own->delta_slope[0]);
    if (call->final_sine)
        op->multiply_slope(own->delta[0], own->delta_slope[0], own->cosine[layers], own->bend[layers],
                           count * width[layers]);
    for (int l = layers - 1; l >= 0; l--) {
        const int64_t out = call->sizes[l + 1], out_width = width[l + 1], in_width = width[l];
        float *grad = own->grad_weights[l], *delta = own->delta[0], *slope = own->delta_slope[0];
        grad_bias(call, op, own, l, count, slope);
        if (l == 0) {
            op->product(call->sizes[0], out_width, count, x, call->x_feature, call->x_point, slope, out_width, NULL,
                        NULL, grad, out_width, grad, out_width);
            break;
        }
        op->product(out, in_width, count, slope, 1, out_width, own->value[l], in_width, delta, own->value_slope[l],
                    grad, in_width, grad, in_width);
        op->product(count, in_width, out, delta, out_width, 1, own->rows[l], in_width, NULL, NULL, own->zeros, 0,
                    own->delta[1], in_width);
        op->product(count, in_width, out, slope, out_width, 1, own->rows[l], in_width, delta, own->rows_slope[l],
                    own->zeros, 0, own->delta_slope[1], in_width);
        op->multiply_slope(own->delta[1], own->delta_slope[1], own->cosine[l], own->bend[l], count * in_width);
        swap(own->delta);
        swap(own->delta_slope);
    }
}
