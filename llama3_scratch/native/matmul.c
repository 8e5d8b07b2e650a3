/* What any model needs of C: which kernels are in use, memory for a call, one matmul with a stored weight, and rows of
 * one, by which an embedding is read.
 */
#include "native.h"

#include <pthread.h>
#include <stdlib.h>
#ifdef HAS_X86
#include <cpuid.h>
#endif

const Kernels *kernels = &portable_kernels;

#ifdef HAS_X86
static int has_f16c(void) { /* not every compiler's __builtin_cpu_supports knows it */
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

/* Use the best kernels up to `level`: 0 plain C, 1 AVX2, 2 AVX-512 with VNNI. Returns which. */
EXPORT int choose_kernels(int level) {
    kernels = &portable_kernels;
    int chosen = 0;
#ifdef HAS_X86
    __builtin_cpu_init();
    int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    if (level >= 1 && avx2) {
        kernels = &avx2_kernels;
        chosen = 1;
    }
    if (level >= 2 && avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vnni") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) {
        prepare_avx512();
        kernels = &avx512_kernels;
        chosen = 2;
    }
#endif
    (void)level;
    return chosen;
}

/* What a thread has reserved; the key's destructor frees it when the thread ends. */
typedef struct {
    size_t size;
    char *memory;
} Reserved;
static pthread_key_t reserved_key;
static int has_key;

static void free_reserved(void *of_thread) {
    free(((Reserved *)of_thread)->memory);
    free(of_thread);
}

static void make_key(void) { has_key = !pthread_key_create(&reserved_key, free_reserved); }

int reserve(Scratch *s, size_t size) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, make_key);
    if (!has_key) return 0;
    Reserved *own = pthread_getspecific(reserved_key);
    if (!own) {
        own = calloc(1, sizeof(Reserved));
        if (!own || pthread_setspecific(reserved_key, own)) {
            free(own);
            return 0;
        }
    }
    if (own->size < size) {
        free(own->memory);
        own->memory = malloc(size);
        own->size = own->memory ? size : 0;
    }
    s->memory = own->memory;
    s->used = 0;
    return s->memory != 0;
}

/* Free what the calling thread has reserved. */
EXPORT void free_scratch(void) {
    Reserved *own = has_key ? pthread_getspecific(reserved_key) : 0;
    if (own) {
        pthread_setspecific(reserved_key, 0);
        free_reserved(own);
    }
}

void *take(Scratch *s, size_t size) {
    size_t at = s->used;
    s->used += (size + 63) / 64 * 64;
    return s->memory ? s->memory + at : 0;
}

Input make_input(Scratch *s, int n, int columns) {
    size_t numbers = (size_t)n * columns, groups = (size_t)n * (columns / GROUP);
    Input in = {.n = n, .columns = columns};
    in.floats = take(s, sizeof(float) * numbers);
    in.bytes = take(s, 2 * numbers);
    in.scales = take(s, sizeof(float) * groups);
    in.sums = take(s, sizeof(int32_t) * groups);
    in.totals = take(s, sizeof(float) * groups);
    return in;
}

void round_input(const Input *in, int i) {
    int64_t at = (int64_t)i * in->columns, group = (int64_t)i * (in->columns / GROUP);
    kernels->round(in->floats + at, in->columns, in->bytes + 2 * at, in->scales + group, in->sums + group,
                   in->totals + group);
}

int strips_of(const Weight *w) { return (w->rows + STRIP - 1) / STRIP; }

/* How many strips a thread takes at once: enough to be read as one stream, few enough that all end together. */
int strips_at_once(const Weight *w, int threads) {
    enum { MIN_VALUES = 1 << 18 }; /* of 2^15 memory gives a tenth less */
    int64_t max = strips_of(w) / (8 * threads) + 1, wanted = MIN_VALUES / ((int64_t)w->columns * STRIP) + 1;
    return (int)(wanted < max ? wanted : max);
}

/* The weight comes next: its memory is fetched from the beginning of this thread's share, a little at once and more
 * whenever there is nothing else to do. */
void prefetch_weight(const Weight *w) {
    enum { NOW_BYTES = 1 << 12, MAX_BYTES = 1 << 17 };
    static const int bits[] = {32, 16, 16, 8, 8, 4, 4};
    int64_t begin = (int64_t)share_of(strips_of(w)) * STRIP * w->columns * bits[w->kind] / 8;
    int64_t end = (int64_t)w->rows * w->columns * bits[w->kind] / 8;
    if (end > begin + MAX_BYTES) end = begin + MAX_BYTES;
    const char *values = w->values;
    for (int64_t at = begin; at < begin + NOW_BYTES && at < end; at += 64) __builtin_prefetch(values + at, 0, 2);
    if (begin + NOW_BYTES < end) prefetch_while_waiting(values + begin + NOW_BYTES, values + end);
}

/* One matmul: out[i] = weight · x[i]. */
typedef struct {
    const Weight *weight;
    Input in;
    float *out;
    int threads;
} Matmul;

static void matmul_work(void *argument) {
    enum { ROUND, MULTIPLY };
    Matmul *m = argument;
    const Weight *w = m->weight;
    if (w->kind >= INT8_TILES) {
        FOR_EACH (i, ROUND, 1, m->in.n) round_input(&m->in, i);
        wait_for(ROUND, m->in.n);
    }
    FOR_EACH (strip, MULTIPLY, strips_at_once(w, m->threads), strips_of(w)) {
        for (int first = 0; first < m->in.n; first += MAX_INPUTS)
            kernels->strip(w, strip, &m->in, first, inputs_at_once(&m->in, first),
                           m->out + (int64_t)first * w->rows + STRIP * strip, w->rows);
    }
    wait_for(MULTIPLY, strips_of(w));
}

/* out [n][rows] = x [n][columns] · weightᵀ. Returns 0 where there is no memory for it. */
EXPORT int matmul(const Weight *w, int n, const float *x, float *out, int threads, int last) {
    Scratch s = {0, 0};
    make_input(&s, n, w->columns); /* without memory it only counts */
    if (!reserve(&s, s.used)) return 0;
    Matmul m = {w, make_input(&s, n, w->columns), out, threads};
    m.in.floats = (float *)x;
    return run(matmul_work, &m, 2, threads, last);
}

/* Rows of a weight as floats, out [n][columns]: what an embedding is read by. */
EXPORT void rows(const Weight *w, int n, const int64_t *index, float *out) {
    int bits = w->kind == INT8_TILES ? 8 : 4, middle = w->kind == INT4_TILES ? 8 : 0;
    for (int i = 0; i < n; i++, out += w->columns) {
        int r = (int)(index[i] % STRIP);
        for (int c = 0; c < w->columns && w->kind < INT8_TILES; c++) {
            out[c] = number_at(w, index[i] * w->columns + c);
            if (w->kind == INT8_ROWS)
                out[c] *= ((const float *)w->scales)[index[i] * w->groups + c / (w->columns / w->groups)];
        }
        for (int g = 0; g < w->groups && w->kind >= INT8_TILES; g++) {
            int64_t tile = index[i] / STRIP * w->groups + g;
            const uint8_t *values = (const uint8_t *)w->values + tile * STRIP * GROUP * bits / 8;
            float scale = from_f16(((const uint16_t *)w->scales)[tile * STRIP + r]);
            float least = w->mins ? from_f16(((const uint16_t *)w->mins)[tile * STRIP + r]) : 0;
            for (int c = 0; c < GROUP; c++) {
                uint8_t byte = values[((bits == 8 ? c : c % 16) / 4 * STRIP + r) * 4 + c % 4];
                int value = bits == 8 ? (int8_t)byte : (c < 16 ? byte & 15 : byte >> 4) - middle;
                out[g * GROUP + c] = (float)value * scale + least;
            }
        }
    }
}
