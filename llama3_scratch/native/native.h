/* What the C files share: how a weight lies in memory, what a matmul reads, the table of kernels, the pool of threads.
 * layout.py has the same structures and numbers for Python; constants.c exports them, and they are compared at load.
 *
 * A matmul is computed in strips of 16 rows of the weight. A strip's kernel gets up to MAX_INPUTS inputs at once, so
 * that a weight that was read from memory is used for all of them.
 */
#ifndef LLAMA3_SCRATCH_NATIVE_H
#define LLAMA3_SCRATCH_NATIVE_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

enum {
    STRIP = 16,            /* rows of a weight that a kernel computes at once: those of a tile */
    GROUP = 32,            /* columns of a tile, for which a row has one scale */
    MAX_INPUTS = 16,       /* vectors that a kernel multiplies a strip by at once */
    CHUNK_SLOTS = 64,      /* slots of a cache that are attended to at once */
    MAX_SPLIT_TOKENS = 16, /* tokens up to which the attention of each is split between threads */
    MAX_THREADS = 256
};

/* How the values of a weight are stored. The last three lie in tiles of 16 rows × 32 columns; stored.py says how. */
enum Kind { F32, BF16, F16, INT8_ROWS, INT8_TILES, INT4_TILES, INT4_TILES_WITH_MINS };

typedef struct {
    int32_t kind, rows, columns, groups; /* groups: scales a row */
    const void *values, *scales, *mins;
} Weight;

/* The inputs of a matmul: n vectors as floats and, for weights in tiles, rounded to 16 bits with a scale for 32. The
 * processor multiplies bytes, so a rounded value is 256 · high + low, neither of them −128. */
typedef struct {
    int32_t n, columns;
    float *floats; /* [n][columns] */
    int8_t *bytes; /* [n][groups][2][GROUP]: the high ones of a group, then its low ones */
    float *scales; /* [n][groups] */
    int32_t *sums; /* [n][groups], of the rounded values */
    float *totals; /* [n][groups], scale · sum */
} Input;

enum { MAX_ROUNDED = 127 * 256 }; /* the magnitude that the largest number of a group is rounded to */

/* How keys or values are cached. INT8 and INT4 have a scale for `group` numbers along the head; what INT4 holds has
 * been through a Hadamard transform (decode.c), and `widen` gives it as it is held. */
enum CacheKind { CACHE_F32, CACHE_BF16, CACHE_INT8, CACHE_INT4 };

typedef struct {
    int32_t kind, group;
    void *values;  /* [pages][page_slots][heads][head_dim] */
    float *scales; /* [pages][page_slots][heads][head_dim / group] */
} CachedVectors;

/* One layer. The norms are weights of one row. */
typedef struct {
    Weight attention_norm, ffn_norm;
    Weight wq, wk, wv, wo, w1, w2, w3;
} Layer;

typedef struct {
    int32_t dim, heads, kv_heads, head_dim, hidden;
    float eps;
} Sizes;

/* Where the tokens stand: token i is at `positions[i]` of the sequence `rows[i]`, which lies in pages of a cache, as
 * the row's part of the page table says. A cache that isn't paged has a page a row. */
typedef struct {
    int32_t n, page_slots, pages_per_row; /* page_slots: a multiple of CHUNK_SLOTS, or there's one page a row */
    int32_t n_logits;
    const int32_t *rows, *positions;
    const int32_t *page_table; /* [rows][pages_per_row] */
    const int32_t *logits_of;  /* [n_logits], the tokens of which the logits are wanted */
    const float *rotations;    /* [every position][head_dim / 2] complex */
} Tokens;

typedef struct {
    /* Rows 16·strip … of the weight times the inputs first … first + n, n <= MAX_INPUTS; out[stride · i + r] is that of
     * row 16·strip + r and input first + i, and nothing is written for rows that the weight hasn't. A result is the
     * same bits in whatever company its input is, where the weight is in tiles. */
    void (*strip)(const Weight *, int strip, const Input *, int first, int n, float *out, int64_t stride);
    void (*round)(const float *x, int columns, int8_t *bytes, float *scales, int32_t *sums, float *totals);
    float (*dot)(const float *a, const float *b, int n);
    /* Of R queries and n keys or values, which lie `stride` floats apart: out[r][s] = q[r] · k[s], and
     * out[r] = Σ weights[r][s] · v[s]. A row of scores or weights is CHUNK_SLOTS long. */
    void (*scores)(const float *q, int R, int K, const float *k, int64_t stride, int n, float *out);
    void (*mix)(const float *weights, int R, int K, const float *v, int64_t stride, int n, float *out);
    /* `scores` of several tokens, to the bit: token t sees seen[t] of the keys, and its R queries lie q_stride floats
     * behind those of t − 1. `room` is for CHUNK_SLOTS · K floats. */
    void (*scores_of_tokens)(int tokens, const int *seen, const float *q, int64_t q_stride, int R, int K,
                             const float *k, int64_t stride, float *room, float *out);
    float (*largest)(const float *x, int n);
    float (*exp_minus)(float *x, float max, int n);                          /* x = exp(x − max), returns their sum */
    void (*swiglu)(const float *gates, const float *ups, int n, float *out); /* out = silu(gate) · up */
    /* n cached keys or values as floats: vectors first, first + step, … */
    void (*widen)(const CachedVectors *, int64_t first, int step, int n, int head_dim, float *out);
} Kernels;

extern const Kernels *kernels; /* those in use */
extern const Kernels portable_kernels;
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define HAS_X86 1
extern const Kernels avx2_kernels;
extern Kernels avx512_kernels;
void prepare_avx512(void);
#endif

static inline float from_bf16(uint16_t bits) {
    union {
        uint32_t u;
        float f;
    } both = {(uint32_t)bits << 16};
    return both.f;
}

static inline float from_f16(uint16_t bits) {
    uint32_t sign = (uint32_t)(bits & 0x8000) << 16, rest = bits & 0x7fff;
    union {
        uint32_t u;
        float f;
    } both;
    if (rest >= 0x7c00) { /* infinity, NaN */
        both.u = sign | 0x7f800000 | (rest & 0x3ff) << 13;
    } else if (rest >= 0x400) {
        both.u = sign | ((rest << 13) + 0x38000000);
    } else { /* a subnormal half is a normal float */
        both.f = (float)rest * 0x1p-24f;
        both.u |= sign;
    }
    return both.f;
}

/* A number of a weight in floats or int8, before its scale: the one at `at`, counted row by row. */
static inline float number_at(const Weight *w, int64_t at) {
    switch (w->kind) {
    case F32: return ((const float *)w->values)[at];
    case BF16: return from_bf16(((const uint16_t *)w->values)[at]);
    case F16: return from_f16(((const uint16_t *)w->values)[at]);
    default: return ((const int8_t *)w->values)[at];
    }
}

/* Memory for one call, kept for the next one of the same thread and freed when that ends: `reserve` it all, then `take`
 * the parts. */
typedef struct {
    char *memory; /* or 0, and `take` only counts */
    size_t used;
} Scratch;
int reserve(Scratch *scratch, size_t size); /* 0 without memory */
void *take(Scratch *scratch, size_t size);  /* 64 bytes apart */

/* The inputs of matmuls (matmul.c). */
Input make_input(Scratch *scratch, int n, int columns);
void round_input(const Input *in, int i);

int strips_of(const Weight *w);
int strips_at_once(const Weight *w, int threads);
void prefetch_weight(const Weight *w);
static inline int rows_of_strip(const Weight *w, int strip) {
    return w->rows - STRIP * strip < STRIP ? w->rows - STRIP * strip : STRIP;
}
static inline int inputs_at_once(const Input *in, int first) {
    return in->n - first < MAX_INPUTS ? in->n - first : MAX_INPUTS;
}

/* The pool. A job is phases of so many pieces, and all threads that are there go through it: each has a share of a
 * phase, one behind the other in memory, takes pieces of it and then of the others', and goes on when all are done, by
 * whomever. So nobody ever waits for a thread that the system has put aside, only for work. `last` says that no job
 * follows soon and the threads needn't wait awake. */
typedef void Work(void *argument);
int run(Work *work, void *argument, int phases, int threads, int last); /* 0 without memory */
void wait_for(int phase, int pieces);                                   /* until so many are finished */
int thread_number(void);                                                /* the caller's of `run` is 0 */
int share_of(int pieces);                                               /* the first piece of this thread's share */
void prefetch_while_waiting(const char *begin, const char *end);        /* what this thread will read next */

/* The next pieces of a phase that this thread gets: begin … end. */
typedef struct {
    int phase, size, total, shares, begin, end;
} Range;
int next_range(Range *range); /* finish the range and take another of `size` pieces; 0 where none are left */

/* for each piece i of `total` that this thread gets, `size` at a time */
#define FOR_EACH(i, phase, size, total)                                      \
    for (Range range_ = {phase, size, total, 0, 0, 0}; next_range(&range_);) \
        for (int i = range_.begin; i < range_.end; i++)

#endif
