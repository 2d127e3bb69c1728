/* Batches of small SIREN networks on the CPU: values, and first and second derivatives in all weights and biases.
 *
 * A block of BLOCK points goes through all layers while its activations stay in the first- and second-level cache;
 * the gradient recomputes them instead of reading them back from memory. Work items (an instance and a slice of its
 * points) are taken from an atomic counter by threads that live for one call: nobody spins, so a busy machine costs
 * no more than its share. What an item computes, and the order in which slices are added, depend on the sizes alone:
 * results are bit-equal for every number of threads.
 */

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "_siren_sine.h"

#include "_siren_exp.h"

#define VERSION 4          /* of this interface; kernel.py holds the same number */
#define MAX_LAYERS 32
#define MAX_THREADS 64
#ifndef BLOCK
#define BLOCK 64           /* points per block */
#endif
#define FORWARD_BLOCKS 24  /* blocks per work item of the forward pass */
#define SLICE_BLOCKS 12    /* least blocks per slice of the gradient */
#define MAX_SLICES 8       /* of one instance; each needs its own copy of the gradient */
#define PAD 16             /* widths of buffers are multiples of this, the widest register */
#define TERMS 3            /* of a loss at most */
#define TILE_ROWS 4
#define TALL_ROWS 8

#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 8")
#endif

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
typedef int32_t shuffle_order __attribute__((vector_size(16)));
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (shuffle_order){__VA_ARGS__})
#endif

/* What a call computes: values; a gradient in the weights; or the slope of that gradient along a direction of the
 * weights, which is the second derivative times the direction. */
enum mode { FORWARD, GRADIENT, SECOND };

/* What the gradient is of: the values times grad_out, a loss between values and targets, or that of rendered rays. */
enum loss { NO_LOSS, SQUARED_ERROR, CROSS_ENTROPY, SIGNED_DISTANCE, RENDERED };

/* The rays of RENDERED, as many of each instance, all arrays contiguous; see _siren_rays.h. */
struct rays {
    int64_t count, samples, carve_points;   /* of an instance: rays, samples of each (at most BLOCK), further points */
    const float *origins, *directions;      /* [batch, count, 3] */
    const float *near, *far;                /* [batch, count] */
    const float *offsets;                   /* [batch, count, samples], places in their bins, or NULL for the middles */
    const float *colors, *mask;             /* [batch, count, 3] and [batch, count]: what shall be seen */
    const float *carve;                     /* [batch, carve_points, 3], points where nothing shall be */
    const float *shares;                    /* [batch, TERMS], what the gradients of the terms count, or NULL: share */
    float share;
    float mask_weight, carve_weight, carve_length;
    float density_scale, density_gain, density_shift;
};

/* One call; kernel.py mirrors this struct. Strides are in floats. */
struct call {
    int32_t mode, loss;
    int32_t layers, final_sine, threads;
    int32_t restraint;              /* 1: no AVX-512, 2: no AVX2 either; to try out what a lesser machine runs */
    /* Of SIGNED_DISTANCE: world units per raw unit, and of the distances; the weight of the colours. */
    float distance_scale, truncation, near_surface, color_weight;
    int64_t batch, points;
    int64_t x_batch, x_feature, x_point;
    int64_t target_batch, target_output, target_point;
    int64_t point_weight_batch, point_weight_point;
    const float *x;                 /* points, any strides */
    float *out;                     /* [batch, outputs, points]: values, or in SECOND their slopes or NULL */
    const float *grad_out;          /* [batch, outputs, points], for NO_LOSS */
    const float *targets;           /* any strides, for a loss */
    const float *point_weights;     /* any strides, or NULL */
    float *losses;                  /* [batch], each the weighted mean over points and outputs, in GRADIENT (of
                                     * SIGNED_DISTANCE: over points; of RENDERED: [batch, TERMS]) */
    const struct rays *rays;        /* of RENDERED, which has no x; or NULL */
    int32_t sizes[MAX_LAYERS + 1];  /* features before and after every layer */
    const float *weights[MAX_LAYERS];
    const float *biases[MAX_LAYERS];
    int64_t weight_batch[MAX_LAYERS];
    int64_t bias_batch[MAX_LAYERS];
    const float *along_weights[MAX_LAYERS]; /* the direction, in SECOND */
    const float *along_biases[MAX_LAYERS];
    int64_t along_weight_batch[MAX_LAYERS];
    int64_t along_bias_batch[MAX_LAYERS];
    float *grads[MAX_LAYERS];       /* [batch, out * in + out]: weights, then biases */
};

struct operations {
    void (*product)(ptrdiff_t, ptrdiff_t, ptrdiff_t, const float *, ptrdiff_t, ptrdiff_t, const float *, ptrdiff_t,
                    const float *, const float *, const float *, ptrdiff_t, float *, ptrdiff_t);
    void (*narrow_product)(ptrdiff_t, ptrdiff_t, ptrdiff_t, const float *, ptrdiff_t, const float *, const float *,
                           ptrdiff_t, float *);
    void (*sine)(float *, ptrdiff_t);
    void (*sine_cosine)(float *, float *, ptrdiff_t);
    void (*multiply)(float *, const float *, ptrdiff_t);
    void (*sine_slope)(float *, float *, float *, float *, ptrdiff_t);
    void (*multiply_slope)(float *, float *, const float *, const float *, ptrdiff_t);
    void (*exponential)(float *, ptrdiff_t);
    void (*radiance)(const struct rays *, const float *, float *, float *, float *, ptrdiff_t);
};

/* ---- the same code for every instruction set ---- */

#if defined(__x86_64__)
#define NAME(x) x##_avx512
#if defined(__clang__)
#define TARGET __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")))
#else
#define TARGET __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,prefer-vector-width=512")))
#endif
#define LANES 16
#define COLUMNS 4
#define TALL_COLUMNS 3
#include "_siren_simd.h"

#define NAME(x) x##_avx2
#define TARGET __attribute__((target("avx2,fma")))
#define LANES 8
#define COLUMNS 3
#define TALL_COLUMNS 1
#include "_siren_simd.h"
#endif

#define NAME(x) x##_plain
#define TARGET
#define LANES 4
#define COLUMNS 3
#define TALL_COLUMNS 1
#include "_siren_simd.h"

static const struct operations *best_operations(int restraint)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (restraint < 1 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
        return &operations_avx512;
    if (restraint < 2 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return &operations_avx2;
#else
    (void)restraint;
#endif
    return &operations_plain;
}

#include "_siren_network.h"

/* ---- a call: items, threads ---- */

struct shared {
    const struct call *call;
    const struct operations *op;
    int64_t blocks, pieces, items;  /* blocks of an instance, the pieces they are dealt in, pieces of all */
    int64_t params;                 /* of one instance */
    float *extra;                   /* gradients of the pieces after an instance's first, [batch, pieces - 1, params] */
    int terms;                      /* of the loss */
    double *losses;                 /* [batch, pieces, terms] */
    atomic_llong next;
};

static int64_t layer_params(const struct call *call, int l)
{
    return (int64_t)call->sizes[l + 1] * (call->sizes[l] + 1);
}

/* Copies the gradient of one piece out of the padded buffers. */
static void store_gradient(const struct shared *shared, const struct buffers *own, int64_t instance, int64_t piece)
{
    const struct call *call = shared->call;
    float *extra = piece ? shared->extra + (instance * (shared->pieces - 1) + piece - 1) * shared->params : NULL;
    for (int l = 0; l < call->layers; l++) {
        const int64_t in = call->sizes[l], out = call->sizes[l + 1];
        float *to = extra ? extra : call->grads[l] + instance * layer_params(call, l);
        for (int64_t o = 0; o < out; o++)
            for (int64_t i = 0; i < in; i++)
                to[o * in + i] = l ? own->grad_weights[l][o * own->width[l] + i]
                                   : own->grad_weights[0][i * own->width[1] + o];
        memcpy(to + out * in, own->grad_bias[l], (size_t)out * sizeof(float));
        if (extra)
            extra += layer_params(call, l);
    }
}

static void run_items(struct shared *shared, struct buffers *own, float *arena)
{
    static void (*const work_of[])(const struct call *, const struct operations *, struct buffers *, int64_t, int64_t,
                                   int64_t) = {block_forward, block_backward, block_second};
    const struct call *call = shared->call;
    void (*const work_on)(const struct call *, const struct operations *, struct buffers *, int64_t, int64_t, int64_t) =
        work_of[call->mode];
    for (;;) {
        const int64_t item = atomic_fetch_add(&shared->next, 1);
        if (item >= shared->items)
            return;
        const int64_t instance = item / shared->pieces, piece = item % shared->pieces;
        const int64_t last = (piece + 1) * shared->blocks / shared->pieces;
        unpack(call, own, instance);
        if (call->mode != FORWARD)
            memset(arena + own->grads_from, 0, (own->grads_to - own->grads_from) * sizeof(float));
        memset(own->losses, 0, sizeof own->losses);
        for (int64_t block = piece * shared->blocks / shared->pieces; block < last; block++) {
            const int64_t first = block_start(call, block);
            work_on(call, shared->op, own, instance, first, block_start(call, block + 1) - first);
        }
        if (call->mode != FORWARD)
            store_gradient(shared, own, instance, piece);
        for (int t = 0; t < shared->terms && call->losses; t++)
            shared->losses[item * shared->terms + t] = own->losses[t];
    }
}

/* One thread's share; returns NULL if done, `argument` if there was no memory for its buffers. */
static void *work(void *argument)
{
    struct shared *shared = argument;
    struct buffers own = {.instance = -1};
    const size_t bytes = plan(shared->call, &own, NULL) * sizeof(float);
    float *arena = aligned_alloc(64, bytes);
    if (!arena)
        return argument;
    memset(arena, 0, bytes); /* the padding must be zero, and stays so */
    plan(shared->call, &own, arena);
#if defined(__x86_64__)
    const unsigned int mode = _mm_getcsr();
    _mm_setcsr(mode | 0x8040); /* denormals, which gradients of faint samples are, cost a hundred times more */
#endif
    run_items(shared, &own, arena);
#if defined(__x86_64__)
    _mm_setcsr(mode);
#endif
    free(arena);
    return NULL;
}

static void add_pieces(const struct shared *shared)
{
    const struct call *call = shared->call;
    const float *extra = shared->extra;
    const int terms = shared->terms;
    for (int64_t i = 0; i < call->batch * terms && call->losses; i++) {
        double loss = 0.0;
        for (int64_t piece = 0; piece < shared->pieces; piece++)
            loss += shared->losses[(i / terms * shared->pieces + piece) * terms + i % terms];
        call->losses[i] = (float)loss;
    }
    for (int64_t instance = 0; instance < call->batch && extra; instance++)
        for (int64_t piece = 1; piece < shared->pieces; piece++)
            for (int l = 0; l < call->layers; l++) {
                const int64_t count = layer_params(call, l);
                float *to = call->grads[l] + instance * count;
                for (int64_t i = 0; i < count; i++)
                    to[i] += extra[i];
                extra += count;
            }
}

int mnif_siren_version(void) { return VERSION; }

/* Runs one call; returns 0, or -1 without enough memory. */
int mnif_siren_run(const struct call *call)
{
    struct shared shared = {.call = call, .op = best_operations(call->restraint)};
    const int gradient = call->mode != FORWARD;
    shared.terms = call->rays ? TERMS : 1;
    shared.blocks = num_blocks(call);
    shared.pieces = gradient ? shared.blocks / SLICE_BLOCKS : shared.blocks / FORWARD_BLOCKS;
    if (gradient && shared.pieces > MAX_SLICES)
        shared.pieces = MAX_SLICES;
    if (shared.pieces < 1)
        shared.pieces = 1;
    shared.items = call->batch * shared.pieces;
    for (int l = 0; l < call->layers; l++)
        shared.params += layer_params(call, l);
    const size_t extra = gradient ? (size_t)(call->batch * (shared.pieces - 1) * shared.params) : 0;
    if (extra && !(shared.extra = malloc(extra * sizeof(float))))
        return -1;
    if (call->losses && !(shared.losses = malloc((size_t)(shared.items * shared.terms) * sizeof(double)))) {
        free(shared.extra);
        return -1;
    }
    atomic_init(&shared.next, 0);
    pthread_t threads[MAX_THREADS];
    int started = 0;
    while (started + 1 < call->threads && started < MAX_THREADS && started + 1 < shared.items) {
        if (pthread_create(&threads[started], NULL, work, &shared))
            break; /* the threads there are do all the work */
        started++;
    }
    /* A thread without memory takes no item, so the others finish; only if all lack it is the work undone. */
    int failed = work(&shared) != NULL;
    for (int t = 0; t < started; t++) {
        void *result = NULL;
        pthread_join(threads[t], &result);
        failed = failed && result != NULL;
    }
    if (!failed)
        add_pieces(&shared);
    free(shared.extra);
    free(shared.losses);
    return failed ? -1 : 0;
}
