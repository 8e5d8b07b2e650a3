/* What the C files share: how a weight lies in memory, what a product reads, and the table of kernels.
 *
 * A product is computed in strips of 16 rows of the weight. A strip's kernel gets up to SOME inputs at once, so that a
 * weight that was read from memory is used for all of them.
 */
#ifndef LLAMA3_SCRATCH_NATIVE_H
#define LLAMA3_SCRATCH_NATIVE_H

#include <stdint.h>

enum { STRIP = 16, GROUP = 32, SOME = 8, CHUNK = 64 }; /* CHUNK: slots of a cache that are attended to at once */

/* How the values of a weight are stored. The last three lie in tiles of 16 rows × 32 columns; stored.py says how. */
enum Kind { F32, BF16, F16, INT8_ROWS, INT8_TILES, INT4_TILES, INT4_TILES_WITH_MINS };

typedef struct {
    int32_t kind, rows, columns, groups; /* groups: scales a row */
    const void *values, *scales, *mins;
} Weight;

/* The inputs of a product: n vectors as floats and, for weights in tiles, rounded to 16 bits with a scale for 32. The
 * processor multiplies bytes, so a rounded value is 256 · high + low, neither of them −128. */
typedef struct {
    int32_t n, columns;
    float *floats;      /* [n][columns] */
    int8_t *high, *low; /* [n][columns] */
    float *scales;      /* [n][groups] */
    int32_t *sums;      /* [n][groups], of the rounded values */
} Input;

enum { MOST_ROUNDED = 127 * 256 };

/* How keys or values are cached. INT8 and INT4 have a scale for `group` numbers along the head; what INT4 holds has been
 * spread (decode.c), and `widen` gives it as it is held. */
enum CacheKind { CACHE_F32, CACHE_BF16, CACHE_INT8, CACHE_INT4 };

typedef struct {
    int32_t kind, group;
    void *values;  /* [rows][slots][heads][head_dim] */
    float *scales; /* [rows][slots][heads][head_dim / group] */
} Kept;

typedef struct {
    /* out[i][16] = rows 16·strip … of the weight times input i, for i in first … first + n, n <= SOME */
    void (*strip)(const Weight *, int strip, const Input *, int first, int n, float (*out)[STRIP]);
    void (*round)(const float *x, int columns, int8_t *high, int8_t *low, float *scales, int32_t *sums);
    float (*dot)(const float *a, const float *b, int n);
    /* Of R queries and n keys or values, which lie `stride` floats apart: out[r][s] = q[r] · k[s], and
     * out[r] = Σ weights[r][s] · v[s]. A row of scores or weights is CHUNK long. */
    void (*scores)(const float *q, int R, int K, const float *k, int64_t stride, int n, float *out);
    void (*mix)(const float *weights, int R, int K, const float *v, int64_t stride, int n, float *out);
    float (*largest)(const float *x, int n);
    float (*exp_minus)(float *x, float most, int n); /* x = exp(x − most), returns their sum */
    /* n cached keys or values as floats: vectors first, first + step, … */
    void (*widen)(const Kept *, int64_t first, int step, int n, int head_dim, float *out);
} Kernels;

extern const Kernels portable_kernels;
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define HAS_X86 1
extern const Kernels avx2_kernels;
extern Kernels avx512_kernels;
void prepare_avx512(void);
#endif

static inline float from_bf16(uint16_t bits) {
    union { uint32_t u; float f; } both = {(uint32_t)bits << 16};
    return both.f;
}

static inline float from_f16(uint16_t bits) {
    uint32_t sign = (uint32_t)(bits & 0x8000) << 16, rest = bits & 0x7fff;
    union { uint32_t u; float f; } both;
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

/* The pool. A job is phases of so many pieces, and all threads that are there go through it: each has a share of a
 * phase, one behind the other in memory, takes pieces of it and then of the others', and goes on when all are done, by
 * whomever. So nobody ever waits for a thread that the system has put aside, only for work. `last` says that no job
 * follows soon and the threads needn't wait awake. */
typedef void Work(void *argument);
int run(Work *work, void *argument, int phases, int threads, int last); /* 0 without memory */
void settle(int phase, int pieces);                                   /* wait until so many are finished */
int own_number(void);                                                 /* of this thread, the caller's is 0 */
int share_of(int pieces);                                             /* the first piece of this thread's share */
void expect(const char *begin, const char *end);                      /* what it will read next: fetched while it waits */

typedef struct { int phase, size, total, shares, begin, end; } Range;
int next_range(Range *range); /* finish the range and take another of `size` pieces; 0 where none are left */

/* for each piece i of `total` that this thread gets, `size` at a time */
#define FOR_EACH(i, phase, size, total)                                                                                \
    for (Range range_ = {phase, size, total, 0, 0, 0}; next_range(&range_);)                                           \
        for (int i = range_.begin; i < range_.end; i++)

#endif
