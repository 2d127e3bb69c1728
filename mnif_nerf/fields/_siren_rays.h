/* Rays of radiance fields in one pass: points along them, volume rendering of the network's values over white, the
 * losses, and their gradients in the values. mnif_nerf/rendering/radiance_losses.py is the same in torch.
 *
 * The points of an instance are the samples of its rays, front to back and ray by ray, and then its carve points. A
 * block holds whole rays, or carve points.
 */

/* Rows of BLOCK numbers: three of colours, then one each. */
enum light { COLORS, DENSITY = 3, SLOPE, THROUGH, LIGHT_ROWS };

/* The losses: of colours, of the opacity against the silhouette, and of what carve points block. */
enum term { COLOR_TERM, MASK_TERM, CARVE_TERM };

static int64_t rays_per_block(const struct rays *rays) { return BLOCK / rays->samples; }

static int64_t blocks_of_rays(const struct rays *rays)
{
    return (rays->count + rays_per_block(rays) - 1) / rays_per_block(rays);
}

static int64_t num_blocks(const struct call *call)
{
    const struct rays *rays = call->rays;
    if (!rays)
        return (call->points + BLOCK - 1) / BLOCK;
    return blocks_of_rays(rays) + (rays->carve_points + BLOCK - 1) / BLOCK;
}

/* The first point of a block, or, after the last block, the number of points. */
static int64_t block_start(const struct call *call, int64_t block)
{
    const struct rays *rays = call->rays;
    int64_t start = block * BLOCK;
    if (rays && block < blocks_of_rays(rays))
        return block * rays_per_block(rays) * rays->samples;
    if (rays)
        start = rays->count * rays->samples + (block - blocks_of_rays(rays)) * BLOCK;
    return start < call->points ? start : call->points;
}

/* Points [count, 3] of a block. */
static const float *points_of_block(const struct rays *rays, struct buffers *own, int64_t instance, int64_t first,
                                    int64_t count)
{
    const int64_t samples = rays->samples, carved = first - rays->count * samples;
    if (carved >= 0)
        return rays->carve + 3 * (instance * rays->carve_points + carved);
    int64_t ray = instance * rays->count + first / samples;
    float *to = own->points;
    for (const float *end = to + 3 * count; to < end; ray++) {
        const float near = rays->near[ray], bin = (rays->far[ray] - near) / (float)samples;
        for (int64_t s = 0; s < samples; s++, to += 3) {
            const float t = near + ((float)s + (rays->offsets ? rays->offsets[ray * samples + s] : 0.5f)) * bin;
            for (int axis = 0; axis < 3; axis++)
                to[axis] = rays->origins[3 * ray + axis] + rays->directions[3 * ray + axis] * t;
        }
    }
    return own->points;
}

/* What the gradient of a term counts. */
static float share_of(const struct rays *rays, int64_t instance, enum term term)
{
    return rays->shares ? rays->shares[instance * TERMS + term] : rays->share;
}

/* One ray: its losses, and their gradient in its values, for transmittances behind each sample. The light of a sample is
 * what the transmittance falls by in it. */
static void seed_ray(const struct rays *rays, int64_t instance, int64_t ray, const float *light, double *losses,
                     float *delta)
{
    const int64_t samples = rays->samples, at = instance * rays->count + ray;
    const float *through = light + THROUGH * BLOCK, one_ray = 1.0f / (float)rays->count;
    const float bin = (rays->far[at] - rays->near[at]) / (float)samples;
    float color[3] = {0.0f, 0.0f, 0.0f}, opacity = 0.0f, before = 1.0f;
    for (int64_t s = 0; s < samples; before = through[s++]) {
        const float weight = before - through[s];
        opacity += weight;
        for (int c = 0; c < 3; c++)
            color[c] += weight * light[c * BLOCK + s];
    }
    float slope[3], opacity_slope = 0.0f;
    for (int c = 0; c < 3; c++) {
        const float error = color[c] + (1.0f - opacity) - rays->colors[3 * at + c], each = one_ray / 3.0f;
        losses[COLOR_TERM] += (double)(each * error * error);
        slope[c] = 2.0f * share_of(rays, instance, COLOR_TERM) * each * error;
        opacity_slope -= slope[c];
    }
    if (rays->mask_weight > 0.0f) {
        const float error = opacity - rays->mask[at], each = rays->mask_weight * one_ray;
        losses[MASK_TERM] += (double)(each * error * error);
        opacity_slope += 2.0f * share_of(rays, instance, MASK_TERM) * each * error;
    }
    float later = 0.0f, depth_slope = 0.0f; /* of the weight of the sample behind; of an optical depth */
    for (int64_t s = samples - 1; s >= 0; s--) {
        const float front = s ? through[s - 1] : 1.0f, weight = front - through[s];
        float weight_slope = opacity_slope;
        for (int c = 0; c < 3; c++) {
            const float value = light[c * BLOCK + s];
            weight_slope += slope[c] * value;
            delta[4 * s + c] = weight * slope[c] * value * (1.0f - value);
        }
        depth_slope += through[s] * (weight_slope - later);
        later = weight_slope;
        delta[4 * s + 3] = depth_slope * bin * light[SLOPE * BLOCK + s];
    }
}

static void seed_rays(const struct call *call, const struct operations *op, struct buffers *own, int64_t instance,
                      int64_t first, int64_t count, float *delta)
{
    const struct rays *rays = call->rays;
    const int64_t samples = rays->samples, ray = first / samples;
    float *density = own->light + DENSITY * BLOCK, *through = own->light + THROUGH * BLOCK;
    for (int64_t at = 0; at < count; at += samples) {
        const int64_t of = instance * rays->count + ray + at / samples;
        const float bin = (rays->far[of] - rays->near[of]) / (float)samples;
        float depth = 0.0f;
        for (int64_t s = 0; s < samples; s++) {
            depth += density[at + s] * bin;
            through[at + s] = -depth;
        }
    }
    op->exponential(through, count);
    for (int64_t at = 0; at < count; at += samples)
        seed_ray(rays, instance, ray + at / samples, own->light + at, own->losses, delta + 4 * at);
}

static void seed_carved(const struct call *call, const struct operations *op, struct buffers *own, int64_t instance,
                        int64_t count, float *delta)
{
    const struct rays *rays = call->rays;
    const float each = rays->carve_weight / (float)rays->carve_points, length = rays->carve_length;
    const float *density = own->light + DENSITY * BLOCK, *slope = own->light + SLOPE * BLOCK;
    float *through = own->light + THROUGH * BLOCK;
    for (int64_t i = 0; i < count; i++)
        through[i] = -length * density[i];
    op->exponential(through, count);
    memset(delta, 0, (size_t)(4 * count) * sizeof(float));
    for (int64_t i = 0; i < count; i++) {
        own->losses[CARVE_TERM] += (double)(each * (1.0f - through[i]));
        delta[4 * i + 3] = share_of(rays, instance, CARVE_TERM) * each * length * through[i] * slope[i];
    }
}

/* Adds a block's share of the losses of rendered rays; see `seed`. */
static void seed_rendered(const struct call *call, const struct operations *op, struct buffers *own, int64_t instance,
                          int64_t first, int64_t count, float *delta)
{
    float *light = own->light;
    op->radiance(call->rays, own->value[call->layers], light, light + DENSITY * BLOCK, light + SLOPE * BLOCK, count);
    if (first < call->rays->count * call->rays->samples)
        seed_rays(call, op, own, instance, first, count, delta);
    else
        seed_carved(call, op, own, instance, count, delta);
}
