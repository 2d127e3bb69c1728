/* Rays through the distances that a TracingGrid keeps: each steps until it meets the surface, leaves the scene box, or
 * comes to a rough cell, where the network must be asked. `mnif_nerf.rendering.grid_march` has the same in torch. */

#include <math.h>
#include <stdint.h>

#define VERSION 1
#define FREE -1
#define SOLID -2
#define PARTS 4
#define CORNERS (PARTS + 1)
#define REFINEMENTS 6

enum { LEFT, MET, CUT, ASKS };

struct grid {
    int64_t cells;        /* coarse ones along an edge */
    float half_extent;    /* half the edge of the scene box */
    float least;          /* the shortest step */
    const int32_t *index; /* [cells^3] brick of a coarse cell, FREE or SOLID */
    const float *leap;    /* [cells^3] how far nothing is around a free cell */
    const float *steps;   /* [bricks, CORNERS^3] safe steps, negative inside */
    const uint8_t *rough; /* [bricks, PARTS^3] */
};

static int clamped(float place, int count)
{
    const int whole = (int)place;
    return place > 0.0f ? (whole < count ? whole : count - 1) : 0;
}

/* The safe step from a point, and its coarse cell; `rough` where the grid does not know. */
static float step_at(const struct grid *grid, const float *o, const float *d, float t, int64_t *cell, int *rough)
{
    const int count = (int)grid->cells;
    const float scale = (float)count / (2.0f * grid->half_extent);
    float place[3];
    int whole[3], part[3];
    for (int axis = 0; axis < 3; axis++) {
        place[axis] = (o[axis] + t * d[axis] + grid->half_extent) * scale;
        whole[axis] = clamped(place[axis], count);
    }
    *cell = ((int64_t)whole[0] * count + whole[1]) * count + whole[2];
    *rough = 0;
    const int32_t brick = grid->index[*cell];
    if (brick == FREE)
        return INFINITY;
    if (brick == SOLID)
        return -1.0f / scale;
    for (int axis = 0; axis < 3; axis++) {
        place[axis] = (place[axis] - (float)whole[axis]) * PARTS;
        place[axis] = place[axis] < 0.0f ? 0.0f : place[axis] > PARTS ? (float)PARTS : place[axis];
        part[axis] = clamped(place[axis], PARTS);
        place[axis] -= (float)part[axis];
    }
    *rough = grid->rough[((int64_t)brick * PARTS + part[0]) * PARTS * PARTS + part[1] * PARTS + part[2]];
    const float *at = grid->steps + ((int64_t)brick * CORNERS + part[0]) * CORNERS * CORNERS + part[1] * CORNERS + part[2];
    float along[4];
    for (int corner = 0; corner < 4; corner++) {
        const float *one = at + (corner >> 1) * CORNERS * CORNERS + (corner & 1) * CORNERS;
        along[corner] = one[0] + place[2] * (one[1] - one[0]);
    }
    const float low = along[0] + place[1] * (along[1] - along[0]), high = along[2] + place[1] * (along[3] - along[2]);
    return low + place[0] * (high - low);
}

/* How far a ray goes on until it has left its coarse cell. */
static float way_out(const struct grid *grid, const float *o, const float *d, float t, int64_t cell)
{
    const int64_t count = grid->cells;
    const float edge = 2.0f * grid->half_extent / (float)count;
    const int64_t whole[3] = {cell / (count * count), cell / count % count, cell % count};
    float out = INFINITY;
    for (int axis = 0; axis < 3; axis++) {
        if (d[axis] == 0.0f)
            continue;
        const float side = (float)(whole[axis] + (d[axis] > 0.0f)) * edge - grid->half_extent;
        const float way = (side - o[axis]) / d[axis] - t;
        out = way < out ? way : out;
    }
    return out > 0.0f ? out : 0.0f;
}

/* Where the grid's distance is zero between `low` (outside) and `high` (inside), by false position (Illinois). */
static float crossing(const struct grid *grid, const float *o, const float *d, float low, float high)
{
    int64_t cell;
    int rough, last = 0;
    float outside = step_at(grid, o, d, low, &cell, &rough), inside = step_at(grid, o, d, high, &cell, &rough);
    if (!(outside < INFINITY))
        outside = high - low;
    for (int k = 0; k < REFINEMENTS; k++) {
        const float middle = low + (high - low) * outside / (outside - inside);
        float found = step_at(grid, o, d, middle, &cell, &rough);
        if (!(found < INFINITY))
            found = high - middle;
        if (found > 0.0f) {
            low = middle, outside = found, inside = last > 0 ? 0.5f * inside : inside, last = 1;
        } else {
            high = middle, inside = found, outside = last < 0 ? 0.5f * outside : outside, last = -1;
        }
    }
    return outside - inside > 0.0f ? low + (high - low) * outside / (outside - inside) : high;
}

int mnif_tracing_version(void) { return VERSION; }

/* March `count` rays on from `t` (whose step before was at `last`): writes what became of each, and where. */
void mnif_tracing_march(const struct grid *grid, int64_t count, const float *origins, const float *directions,
                        const float *start, const float *far, float *last, float *t, uint8_t *state)
{
    const float eps = 1e-4f * grid->half_extent / (float)grid->cells;
    for (int64_t ray = 0; ray < count; ray++) {
        const float *o = origins + 3 * ray, *d = directions + 3 * ray;
        float now = t[ray], before = last[ray];
        uint8_t became = LEFT;
        while (now < far[ray]) {
            int64_t cell;
            int rough;
            float step = step_at(grid, o, d, now, &cell, &rough);
            if (rough) {
                became = ASKS;
                break;
            }
            if (step <= 0.0f) {
                became = now > start[ray] ? MET : CUT;
                if (became == MET)
                    now = crossing(grid, o, d, before, now);
                break;
            }
            if (step == INFINITY) {
                const float out = way_out(grid, o, d, now, cell) + eps, leap = grid->leap[cell];
                step = leap > out ? leap : out;
            } else if (!(step > grid->least)) {
                step = grid->least;
            }
            before = now;
            now += step;
        }
        t[ray] = now, last[ray] = before, state[ray] = became;
    }
}
