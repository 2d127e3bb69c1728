/* Batches of small SIREN networks on the CPU: values, and gradients of all weights and biases.
 *
 * A block of BLOCK points goes through all layers while its activations stay in the first- and second-level cache;
 * the gradient recomputes them instead of reading them back from memory. Work items (an instance and a slice of its
 * points) are taken from an atomic counter by threads that live for one call: nobody spins, so a busy machine costs
 * no more than its share. What an item computes, and the order in which slices are added, depend on the sizes alone:
 * results are bit-equal for every number of threads.
 */

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

#define VERSION 1          /* of this interface; kernel.py holds the same number */
#define MAX_LAYERS 32
#define MAX_THREADS 64
#ifndef BLOCK
#define BLOCK 32           /* points per block */
#endif
#define FORWARD_BLOCKS 48  /* blocks per work item of the forward pass */
#define SLICE_BLOCKS 24    /* least blocks per slice of the gradient */
#define MAX_SLICES 8       /* of one instance; each needs its own copy of the gradient */
#define PAD 16             /* widths of buffers are multiples of this, the widest register */
#define TILE_ROWS 4

#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 8")
#endif

/* One call; kernel.py mirrors this struct. Strides are in floats. */
struct call {
    int32_t layers, final_sine, threads;
    int32_t restraint;              /* 1: no AVX-512, 2: no AVX2 either; to try out what a lesser machine runs */
    int64_t batch, points;
    int64_t x_batch, x_feature, x_point;
    const float *x;                 /* points, any strides */
    float *out;                     /* [batch, outputs, points] */
    const float *grad_out;          /* the same; NULL in the forward pass */
    int32_t sizes[MAX_LAYERS + 1];  /* features before and after every layer */
    const float *weights[MAX_LAYERS];
    const float *biases[MAX_LAYERS];
    int64_t weight_batch[MAX_LAYERS];
    int64_t bias_batch[MAX_LAYERS];
    float *grads[MAX_LAYERS];       /* [batch, out * in + out]: weights, then biases */
};

struct operations {
    void (*product)(ptrdiff_t, ptrdiff_t, ptrdiff_t, const float *, ptrdiff_t, ptrdiff_t, const float *, ptrdiff_t,
                    const float *, ptrdiff_t, float *, ptrdiff_t);
    void (*narrow_product)(ptrdiff_t, ptrdiff_t, ptrdiff_t, const float *, ptrdiff_t, const float *, const float *,
                           float *);
    void (*sine)(float *, ptrdiff_t);
    void (*sine_cosine)(float *, float *, ptrdiff_t);
    void (*multiply)(float *, const float *, ptrdiff_t);
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
#include "_siren_simd.h"

#define NAME(x) x##_avx2
#define TARGET __attribute__((target("avx2,fma")))
#define LANES 8
#define COLUMNS 3
#include "_siren_simd.h"
#endif

#define NAME(x) x##_plain
#define TARGET
#define LANES 4
#define COLUMNS 3
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

/* ---- one thread's buffers ---- */

struct buffers {
    int64_t instance;                          /* whose weights are unpacked here; -1: none */
    float *columns[MAX_LAYERS];                /* weights transposed, [in, padded out] */
    float *rows[MAX_LAYERS];                   /* weights, [out, padded in] (gradient only) */
    float *bias[MAX_LAYERS];
    float *value[MAX_LAYERS + 1];              /* activations after layer l, [BLOCK, padded out] */
    float *cosine[MAX_LAYERS + 1];             /* their derivative (gradient only) */
    float *grad_weights[MAX_LAYERS];           /* [out, padded in]; the first layer: [in, padded out] */
    float *grad_bias[MAX_LAYERS];
    float *zeros;                              /* one row */
    float *delta[2];                           /* gradient of a layer's pre-activations */
    int64_t width[MAX_LAYERS + 1];             /* padded sizes */
    size_t grads_from, grads_to;               /* where the gradient lies in the arena */
};

static float *take(float *arena, size_t *used, int64_t rows, int64_t width)
{
    float *at = arena ? arena + *used : NULL;
    *used += (size_t)(rows * width + PAD - 1) / PAD * PAD;
    return at;
}

/* Lays out the buffers in `arena`; returns the floats needed (arena may be NULL to ask for just that). */
static size_t plan(const struct call *call, struct buffers *to, float *arena)
{
    const int layers = call->layers, gradient = call->grad_out != NULL;
    size_t used = 0;
    int64_t widest = 0;
    for (int l = 0; l <= layers; l++) {
        const int64_t pad = l == layers ? 4 : PAD;
        to->width[l] = (call->sizes[l] + pad - 1) / pad * pad;
        if (to->width[l] > widest)
            widest = to->width[l];
    }
    for (int l = 0; l < layers; l++) {
        to->columns[l] = take(arena, &used, call->sizes[l], to->width[l + 1]);
        to->bias[l] = take(arena, &used, 1, to->width[l + 1]);
        to->rows[l] = gradient && l > 0 ? take(arena, &used, call->sizes[l + 1], to->width[l]) : NULL;
        /* The forward pass needs a layer's input only until its output is there: two buffers take turns. */
        to->value[l + 1] = gradient || l < 2 ? take(arena, &used, BLOCK, widest) : to->value[l - 1];
        to->cosine[l + 1] = gradient ? take(arena, &used, BLOCK, to->width[l + 1]) : NULL;
    }
    to->delta[0] = take(arena, &used, gradient ? BLOCK : 0, widest);
    to->delta[1] = take(arena, &used, gradient ? BLOCK : 0, widest);
    to->zeros = take(arena, &used, 1, widest);
    to->grads_from = used;
    for (int l = 0; gradient && l < layers; l++) {
        to->grad_weights[l] = l == 0 ? take(arena, &used, call->sizes[0], to->width[1])
                                     : take(arena, &used, call->sizes[l + 1], to->width[l]);
        to->grad_bias[l] = take(arena, &used, 1, to->width[l + 1] + PAD);
    }
    to->grads_to = used;
    return used;
}

static void unpack(const struct call *call, struct buffers *own, int64_t instance)
{
    if (own->instance == instance)
        return;
    own->instance = instance;
    for (int l = 0; l < call->layers; l++) {
        const int64_t in = call->sizes[l], out = call->sizes[l + 1];
        const float *weights = call->weights[l] + instance * call->weight_batch[l];
        memcpy(own->bias[l], call->biases[l] + instance * call->bias_batch[l], (size_t)out * sizeof(float));
        for (int64_t o = 0; o < out; o++) {
            for (int64_t i = 0; i < in; i++)
                own->columns[l][i * own->width[l + 1] + o] = weights[o * in + i];
            if (own->rows[l])
                memcpy(own->rows[l] + o * own->width[l], weights + o * in, (size_t)in * sizeof(float));
        }
    }
}

/* ---- a block of points ---- */

/* Through layer l; hidden layers and a final sine leave their sine in value[l + 1] (and cosine[l + 1]). */
static void layer_forward(const struct call *call, const struct operations *op, struct buffers *own, int l,
                          const float *x, int64_t count)
{
    const int last = l == call->layers - 1;
    const int64_t in = call->sizes[l], width = own->width[l + 1];
    const float *from = l ? own->value[l] : x;
    float *to = own->value[l + 1];
    if (last)
        op->narrow_product(count, width, in, from, own->width[l], own->columns[l], own->bias[l], to);
    else
        op->product(count, width, in, from, l ? own->width[l] : call->x_point, l ? 1 : call->x_feature,
                    own->columns[l], width, own->bias[l], 0, to, width);
    if (last && !call->final_sine)
        return;
    if (call->grad_out)
        op->sine_cosine(to, own->cosine[l + 1], count * width);
    else
        op->sine(to, count * width);
}

static void block_forward(const struct call *call, const struct operations *op, struct buffers *own,
                          int64_t instance, int64_t first, int64_t count)
{
    const int layers = call->layers;
    const int64_t outputs = call->sizes[layers];
    for (int l = 0; l < layers; l++)
        layer_forward(call, op, own, l, call->x + instance * call->x_batch + first * call->x_point, count);
    for (int64_t o = 0; o < outputs; o++)
        for (int64_t p = 0; p < count; p++)
            call->out[(instance * outputs + o) * call->points + first + p] =
                own->value[layers][p * own->width[layers] + o];
}

static void block_backward(const struct call *call, const struct operations *op, struct buffers *own,
                           int64_t instance, int64_t first, int64_t count)
{
    static const float one = 1.0f;
    const int layers = call->layers;
    const int64_t outputs = call->sizes[layers], *width = own->width;
    const float *x = call->x + instance * call->x_batch + first * call->x_point;
    float *delta = own->delta[0], *next = own->delta[1];
    for (int l = 0; l < layers - !call->final_sine; l++)
        layer_forward(call, op, own, l, x, count);
    for (int64_t p = 0; p < count; p++)
        for (int64_t o = 0; o < width[layers]; o++)
            delta[p * width[layers] + o] =
                o < outputs ? call->grad_out[(instance * outputs + o) * call->points + first + p] : 0.0f;
    if (call->final_sine)
        op->multiply(delta, own->cosine[layers], count * width[layers]);
    for (int l = layers - 1; l >= 0; l--) {
        const int64_t out = call->sizes[l + 1], out_width = width[l + 1];
        float *grad = own->grad_weights[l], *bias = own->grad_bias[l];
        if (l == layers - 1)
            for (int64_t p = 0; p < count; p++)
                for (int64_t o = 0; o < out; o++)
                    bias[o] += delta[p * out_width + o];
        else
            op->product(1, out_width, count, &one, 0, 0, delta, out_width, bias, 0, bias, 0);
        if (l == 0) {
            op->product(call->sizes[0], out_width, count, x, call->x_feature, call->x_point, delta, out_width, grad,
                        out_width, grad, out_width);
            break;
        }
        op->product(out, width[l], count, delta, 1, out_width, own->value[l], width[l], grad, width[l], grad,
                    width[l]);
        op->product(count, width[l], out, delta, out_width, 1, own->rows[l], width[l], own->zeros, 0, next,
                    width[l]);
        op->multiply(next, own->cosine[l], count * width[l]);
        float *done = delta;
        delta = next;
        next = done;
    }
}

/* ---- a call: items, threads ---- */

struct shared {
    const struct call *call;
    const struct operations *op;
    int64_t blocks, pieces, items;  /* blocks of an instance, the pieces they are dealt in, pieces of all */
    int64_t params;                 /* of one instance */
    float *extra;                   /* gradients of the pieces after an instance's first, [batch, pieces - 1, params] */
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
    const struct call *call = shared->call;
    for (;;) {
        const int64_t item = atomic_fetch_add(&shared->next, 1);
        if (item >= shared->items)
            return;
        const int64_t instance = item / shared->pieces, piece = item % shared->pieces;
        const int64_t last = (piece + 1) * shared->blocks / shared->pieces;
        unpack(call, own, instance);
        if (call->grad_out)
            memset(arena + own->grads_from, 0, (own->grads_to - own->grads_from) * sizeof(float));
        for (int64_t block = piece * shared->blocks / shared->pieces; block < last; block++) {
            const int64_t first = block * BLOCK, left = call->points - first;
            (call->grad_out ? block_backward : block_forward)(call, shared->op, own, instance, first,
                                                              left < BLOCK ? left : BLOCK);
        }
        if (call->grad_out)
            store_gradient(shared, own, instance, piece);
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
    for (int64_t instance = 0; instance < call->batch; instance++)
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

/* Runs the forward pass (grad_out NULL) or the gradient; returns 0, or -1 without enough memory. */
int mnif_siren_run(const struct call *call)
{
    struct shared shared = {.call = call, .op = best_operations(call->restraint)};
    shared.blocks = (call->points + BLOCK - 1) / BLOCK;
    shared.pieces = call->grad_out ? shared.blocks / SLICE_BLOCKS : shared.blocks / FORWARD_BLOCKS;
    if (call->grad_out && shared.pieces > MAX_SLICES)
        shared.pieces = MAX_SLICES;
    if (shared.pieces < 1)
        shared.pieces = 1;
    shared.items = call->batch * shared.pieces;
    for (int l = 0; l < call->layers; l++)
        shared.params += layer_params(call, l);
    const size_t extra = call->grad_out ? (size_t)(call->batch * (shared.pieces - 1) * shared.params) : 0;
    if (extra && !(shared.extra = malloc(extra * sizeof(float))))
        return -1;
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
    if (!failed && extra)
        add_pieces(&shared);
    free(shared.extra);
    return failed ? -1 : 0;
}
