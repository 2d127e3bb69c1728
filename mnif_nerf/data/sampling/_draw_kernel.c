/* What draws rays where an object is, after the random numbers: pixels whose rays meet the hull, the stretch of a ray
 * inside it, and points outside. ray_sampler.py is the same in torch, and both draw the same numbers to the last bit: so
 * every operation is rounded as torch rounds it, and nothing may be contracted but what torch contracts.
 */

#include <math.h>
#include <stdint.h>

#define VERSION 2 /* draw_kernel.py holds the same number */

#if defined(__aarch64__)
#define FUSED 1
#define WITH_FMA
#elif defined(__x86_64__)
#define FUSED (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
#define WITH_FMA __attribute__((target("avx2,fma")))
#else
#define FUSED 0
#define WITH_FMA
#endif

#define MAX_STEPS 64

#define INLINE static inline __attribute__((always_inline))

/* Rows of equal size, in one array or in several (shards), one after the other; draw_kernel.py mirrors these structs. */
struct rows {
    int64_t parts, bytes;                           /* arrays, 0 where there is nothing; bytes of a row */
    const int64_t *starts;                          /* [parts] first row of each */
    const uint8_t *const *data;                     /* [parts] */
};

/* Pixels of instances. */
struct pixels {
    int64_t instances, candidates, wanted;
    const int64_t *scenes;                          /* [instances] */
    const int64_t *view_list, *view_starts, *view_counts;
    const float *places;                            /* [instances, candidates] in [0, 1) */
    const int64_t *positions;                       /* [instances, candidates] flat pixels */
    struct rows touching, silhouettes, images;      /* of views: packed bits, either may be absent; [pixels, 3] */
    int64_t *view, *pixel;                          /* [instances, wanted] */
    float *colors, *mask;                           /* [instances, wanted, 3] and [instances, wanted] */
};

/* Rays of instances, or points of them. */
struct hulls {
    int64_t instances, count, wanted;               /* rays or candidates of an instance; points wanted */
    int64_t size, steps;                            /* cells along an edge; steps through the box, MAX_STEPS at most */
    float half_extent;
    const int64_t *scenes;
    struct rows hulls;                              /* packed bits of size^3 cells */
    const float *origins, *directions;              /* [instances, count, 3] */
    const float *numbers;                           /* [instances, count, 3] in [0, 1) */
    float *near, *far;                              /* [instances, count] */
    float *points;                                  /* [instances, wanted, 3] */
};

int mnif_draw_version(void) { return VERSION; }

INLINE const uint8_t *row_at(const struct rows *rows, int64_t row)
{
    int64_t part = rows->parts - 1;
    while (row < rows->starts[part])
        part--;
    return rows->data[part] + (row - rows->starts[part]) * rows->bytes;
}

INLINE int bit(const uint8_t *row, int64_t position) { return row[position >> 3] >> (position & 7) & 1; }

void mnif_draw_pixels(const struct pixels *draw)
{
    for (int64_t i = 0; i < draw->instances; i++) {
        const int64_t scene = draw->scenes[i], *positions = draw->positions + i * draw->candidates;
        const int64_t *views = draw->view_list + draw->view_starts[scene], to = i * draw->wanted;
        const float views_there = (float)draw->view_counts[scene], *places = draw->places + i * draw->candidates;
        int64_t found = 0;
        for (int64_t k = 0; k < draw->candidates && found < draw->wanted; k++) {
            const int64_t view = views[(int64_t)(places[k] * views_there)], pixel = positions[k];
            if (draw->touching.parts && !bit(row_at(&draw->touching, view), pixel))
                continue;
            draw->view[to + found] = view;
            draw->pixel[to + found++] = pixel;
        }
        if (found == 0) { /* not one meets the hull: the first stands for all */
            draw->view[to] = views[(int64_t)(places[0] * views_there)];
            draw->pixel[to] = positions[0];
            found = 1;
        }
        for (int64_t k = found; k < draw->wanted; k++) { /* too few: again from the first */
            draw->view[to + k] = draw->view[to + k % found];
            draw->pixel[to + k] = draw->pixel[to + k % found];
        }
        for (int64_t k = to; k < to + draw->wanted; k++) {
            const int64_t view = draw->view[k], pixel = draw->pixel[k];
            const uint8_t *color = row_at(&draw->images, view) + 3 * pixel;
            for (int c = 0; c < 3; c++)
                draw->colors[3 * k + c] = (float)color[c] / 255.0f;
            draw->mask[k] = draw->silhouettes.parts ? (float)bit(row_at(&draw->silhouettes, view), pixel) : 1.0f;
        }
    }
}

INLINE float least(float a, float b) { return a < b ? a : b; }

INLINE float greatest(float a, float b) { return a > b ? a : b; }

/* The cells of the middles of all steps, of a ray that starts at `start` cells from the corner. */
INLINE void cells(const struct hulls *draw, int fused, const float *start, const float *direction, float near,
                  float width, float scale, int32_t *restrict at)
{
    const int32_t size = (int32_t)draw->size;
    for (int32_t s = 0; s < (int32_t)draw->steps; s++) {
        const float way = scale * (near + ((float)s + 0.5f) * width);
        int32_t flat = 0;
        for (int axis = 0; axis < 3; axis++) {
            const float scaled = fused ? __builtin_fmaf(way, direction[axis], start[axis])
                                       : start[axis] + way * direction[axis];
            flat = flat * size + (int32_t)greatest(least(scaled, (float)(size - 1)), 0.0f);
        }
        at[s] = flat;
    }
}

/* One ray: where it enters and leaves the box, and in it the span of steps whose middles lie in the hull. */
INLINE void span(const struct hulls *draw, int fused, int64_t ray, const uint8_t *hull)
{
    const float half = draw->half_extent, scale = (float)((double)draw->size / (2.0 * (double)half));
    const float *origin = draw->origins + 3 * ray, *direction = draw->directions + 3 * ray;
    float near = -INFINITY, far = INFINITY, start[3];
    for (int axis = 0; axis < 3; axis++) {
        const float slope = 1.0f / (fabsf(direction[axis]) < 1e-9f ? 1e-9f : direction[axis]);
        const float first = (-half - origin[axis]) * slope, second = (half - origin[axis]) * slope;
        near = greatest(near, least(first, second));
        far = least(far, greatest(first, second));
        start[axis] = (origin[axis] + half) * scale;
    }
    near = greatest(near, 0.0f);
    far = greatest(far, near);
    const float width = (far - near) / (float)draw->steps;
    int32_t at[MAX_STEPS];
    cells(draw, fused, start, direction, near, width, scale, at);
    int64_t first = 0, last = draw->steps;
    while (first < draw->steps && !bit(hull, at[first]))
        first++;
    while (last > first && !bit(hull, at[last - 1]))
        last--;
    draw->near[ray] = near;
    draw->far[ray] = far;
    if (first == draw->steps)
        return;
    /* The march can step over a grazed cell: half a step of margin, and the whole box where it found nothing. */
    draw->near[ray] = greatest((near + (float)first * width) - 0.5f * width, near);
    draw->far[ray] = least((near + (float)last * width) + 0.5f * width, far);
}

INLINE void spans(const struct hulls *draw, int fused)
{
    for (int64_t i = 0; i < draw->instances; i++) {
        const uint8_t *hull = row_at(&draw->hulls, draw->scenes[i]);
        for (int64_t r = 0; r < draw->count; r++)
            span(draw, fused, i * draw->count + r, hull);
    }
}

static WITH_FMA void spans_fused(const struct hulls *draw) { spans(draw, 1); }

void mnif_hull_spans(const struct hulls *draw)
{
    if (FUSED) /* as torch, which takes these instructions where they are there */
        spans_fused(draw);
    else
        spans(draw, 0);
}

/* The first `wanted` candidates outside of the hull; where there are fewer, the box's corner. */
void mnif_carve_points(const struct hulls *draw)
{
    const float half = draw->half_extent, scale = (float)((double)draw->size / (2.0 * (double)half));
    const int64_t size = draw->size;
    for (int64_t i = 0; i < draw->instances; i++) {
        const float *numbers = draw->numbers + 3 * i * draw->count, *end = numbers + 3 * draw->count;
        const uint8_t *hull = row_at(&draw->hulls, draw->scenes[i]);
        float *to = draw->points + 3 * i * draw->wanted, *const stop = to + 3 * draw->wanted;
        for (; numbers < end && to < stop; numbers += 3) {
            int64_t at = 0;
            for (int axis = 0; axis < 3; axis++) {
                to[axis] = (2.0f * numbers[axis] - 1.0f) * half;
                at = at * size + (int64_t)greatest(least((to[axis] + half) * scale, (float)(size - 1)), 0.0f);
            }
            if (!bit(hull, at))
                to += 3;
        }
        while (to < stop)
            *to++ = half;
    }
}
