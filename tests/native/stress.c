/* Drives all that the library exports, without Python: what test_sanitizers.py builds with the sanitizers.
 *
 * The output of a call on many threads must be that of the same call on one, to the last bit, and so must decode's be
 * in whatever pages the rows lie. Says what differs and exits with 1.
 */
#include "native.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

int choose_kernels(int level);
int matmul(const Weight *w, int n, const float *x, float *out, int threads, int last);
void rows(const Weight *w, int n, const int64_t *index, float *out);
int decode(const Layer *layers, int n_layers, const Weight *last_norm, const Sizes *sizes, const Tokens *tokens,
           const CachedVectors *keys, const CachedVectors *values, float *x, const Weight *head, float *logits,
           int threads);
int sample(const float *logits, int n, float temperature, int k, double p, double min_p, double point);
void release(void);
void free_scratch(void);
int constant(const char *name);

enum { DIM = 96, HEADS = 6, KV_HEADS = 2, HEAD_DIM = 16, HIDDEN = 160, VOCABULARY = 112, LAYERS = 2, SLOTS = 320 };
static const int bits_of_kind[] = {32, 16, 16, 8, 8, 4, 4}, bits_of_cache[] = {32, 16, 8, 4};

static uint32_t seed = 1;
static uint32_t any(void) { return seed = seed * 1664525u + 1013904223u; }
static float number(void) { return ((int32_t)(any() >> 8) - (1 << 23)) * 0x1p-23f; }

static void *get(size_t size) { /* exactly so much, that a byte too far is seen */
    void *memory = calloc(1, size ? size : 1);
    if (!memory) abort();
    return memory;
}

static void fail(const char *what, int kind, int n, int threads) {
    printf("%s: kind %d, %d tokens, %d threads\n", what, kind, n, threads);
    exit(1);
}

static Weight make_weight(int kind, int rows, int columns) {
    Weight w = {.kind = kind, .rows = rows, .columns = columns, .groups = kind < INT8_TILES ? 1 : columns / GROUP};
    size_t bytes = (size_t)rows * columns * bits_of_kind[kind] / 8, scales = (size_t)rows * w.groups;
    uint8_t *values = get(bytes);
    for (size_t i = 0; i < bytes; i++) values[i] = (uint8_t)(any() >> 24);
    for (size_t i = 0; kind == F32 && i < bytes / 4; i++) ((float *)values)[i] = number() * 0.2f;
    for (size_t i = 0; (kind == BF16 || kind == F16) && i < bytes / 2; i++) /* ± 0.1 or so */
        ((uint16_t *)values)[i] = (uint16_t)((any() >> 16 & 0x807f) | (kind == BF16 ? 0x3d80 : 0x2c00));
    w.values = values;
    if (kind == INT8_ROWS) {
        float *of_rows = get(scales * 4);
        for (size_t i = 0; i < scales; i++) of_rows[i] = 0.001f;
        w.scales = of_rows;
    } else if (kind >= INT8_TILES) {
        uint16_t *of_groups = get(scales * 2), *mins = kind == INT4_TILES_WITH_MINS ? get(scales * 2) : 0;
        for (size_t i = 0; i < scales; i++) {
            of_groups[i] = (uint16_t)(kind == INT8_TILES ? 0x1400 : 0x2200);
            if (mins) mins[i] = 0xae00;
        }
        w.scales = of_groups;
        w.mins = mins;
    }
    return w;
}

static void free_weight(const Weight *w) {
    free((void *)w->values);
    free((void *)w->scales);
    free((void *)w->mins);
}

static CachedVectors make_cached(int kind, int batch) {
    int64_t numbers = (int64_t)batch * SLOTS * KV_HEADS * HEAD_DIM;
    CachedVectors c = {.kind = kind, .group = kind >= CACHE_INT8 ? HEAD_DIM : 0};
    c.values = get(numbers * bits_of_cache[kind] / 8);
    if (c.group) c.scales = get(numbers / c.group * 4);
    return c;
}

typedef struct {
    Layer layers[LAYERS];
    Weight last_norm, head;
    Sizes sizes;
    float *rotations;
} Model;

static Model make_model(int kind) {
    Model m = {.sizes = {DIM, HEADS, KV_HEADS, HEAD_DIM, HIDDEN, 1e-5f}};
    for (int i = 0; i < LAYERS; i++) {
        Layer *l = m.layers + i;
        int norms = kind <= F16 ? kind : F32;
        l->attention_norm = make_weight(norms, 1, DIM), l->ffn_norm = make_weight(norms, 1, DIM);
        l->wq = make_weight(kind, HEADS * HEAD_DIM, DIM), l->wk = make_weight(kind, KV_HEADS * HEAD_DIM, DIM);
        l->wv = make_weight(kind, KV_HEADS * HEAD_DIM, DIM), l->wo = make_weight(kind, DIM, HEADS * HEAD_DIM);
        l->w1 = make_weight(kind, HIDDEN, DIM), l->w2 = make_weight(kind, DIM, HIDDEN);
        l->w3 = make_weight(kind, HIDDEN, DIM);
    }
    m.last_norm = make_weight(F32, 1, DIM), m.head = make_weight(kind, VOCABULARY, DIM);
    m.rotations = get(sizeof(float) * SLOTS * HEAD_DIM);
    for (int i = 0; i < SLOTS * HEAD_DIM; i += 2) {
        float t = number(), norm = 1 / (1 + t * t);
        m.rotations[i] = (1 - t * t) * norm, m.rotations[i + 1] = 2 * t * norm;
    }
    return m;
}

static void free_model(Model *m) {
    for (int i = 0; i < LAYERS; i++) {
        const Weight *all = &m->layers[i].attention_norm;
        for (int k = 0; k < (int)(sizeof(Layer) / sizeof(Weight)); k++) free_weight(all + k);
    }
    free_weight(&m->last_norm);
    free_weight(&m->head);
    free(m->rotations);
}

/* `n` tokens of `batch` rows, after `before` others of which nothing is known but zeros. Paged, the rows' pages lie in
 * any order. */
static void run_decode(const Model *m, int cache, int batch, int n, int before, int threads, int paged, int head,
                       float *x, float *logits) {
    CachedVectors keys[LAYERS], values[LAYERS];
    for (int i = 0; i < LAYERS; i++) keys[i] = make_cached(cache, batch), values[i] = make_cached(3 - cache, batch);
    int32_t *row = get(4 * n * batch), *position = get(4 * n * batch);
    for (int i = 0; i < n * batch; i++) row[i] = i / n, position[i] = before / (1 + i / n) + i % n;
    int pages_per_row = paged ? SLOTS / CHUNK_SLOTS : 1, pages = batch * pages_per_row;
    int32_t *page_table = get(4 * pages), *logits_of = get(4 * n * batch);
    for (int i = 0; i < n * batch; i++) logits_of[i] = i;
    for (int i = 0; i < pages; i++) { /* a shuffle as it goes */
        int other = paged ? (int)(any() >> 8) % (i + 1) : i;
        page_table[i] = page_table[other];
        page_table[other] = i;
    }
    Tokens tokens = {n * batch, SLOTS / pages_per_row, pages_per_row, n * batch, row, position, page_table,
                     logits_of, m->rotations};
    if (!decode(m->layers, LAYERS, &m->last_norm, &m->sizes, &tokens, keys, values, x, head ? &m->head : 0, logits,
                threads))
        fail("no memory", cache, n, threads);
    for (int i = 0; i < LAYERS; i++) {
        free(keys[i].values), free(keys[i].scales);
        free(values[i].values), free(values[i].scales);
    }
    free(row), free(position), free(page_table), free(logits_of);
}

static void check_decode(const Model *m, int kind, int n, int batch, int before, int threads) {
    int cache = (int)(any() >> 30), head = n * batch <= MAX_SPLIT_TOKENS;
    size_t in = sizeof(float) * n * batch * DIM, out = sizeof(float) * n * batch * VOCABULARY;
    float *start = get(in), *x = get(in), *wanted = get(in), *logits = get(out), *wanted_logits = get(out);
    for (int i = 0; i < n * batch * DIM; i++) start[i] = number();
    memcpy(x, start, in), memcpy(wanted, start, in);
    run_decode(m, cache, batch, n, before, 1, 0, head, wanted, wanted_logits);
    run_decode(m, cache, batch, n, before, threads, (int)(any() >> 31), head, x, logits);
    if (memcmp(head ? logits : x, head ? wanted_logits : wanted, head ? out : in))
        fail("decode differs", kind, n, threads);
    free(start), free(x), free(wanted), free(logits), free(wanted_logits);
}

static void check_matmul(int kind, int rows_, int columns, int n, int threads) {
    Weight w = make_weight(kind, rows_, columns);
    float *x = get(sizeof(float) * n * columns), *out = get(sizeof(float) * n * rows_);
    float *wanted = get(sizeof(float) * n * rows_), *read = get(sizeof(float) * n * columns);
    int64_t *index = get(sizeof(int64_t) * n);
    for (int i = 0; i < n * columns; i++) x[i] = number();
    for (int i = 0; i < n; i++) index[i] = any() % (uint32_t)rows_;
    matmul(&w, n, x, wanted, 1, 1);
    matmul(&w, n, x, out, threads, (int)(any() >> 31));
    if (memcmp(out, wanted, sizeof(float) * n * rows_)) fail("matmul differs", kind, n, threads);
    rows(&w, n, index, read);
    free_weight(&w), free(x), free(out), free(wanted), free(read), free(index);
}

/* A token of a row, whatever is asked for; none of a row that holds a NaN. */
static void check_sample(void) {
    int n = 1 + any() % 2000, equal = (int)(any() >> 30);
    float *logits = get(sizeof(float) * n);
    for (int i = 0; i < n; i++) logits[i] = equal == 0 ? 1 : equal == 1 ? (float)(int)(number() * 4) : number() * 20;
    double point = (number() + 1) / 2;
    int token = sample(logits, n, 0.1f + (number() + 1), (int)(any() % 3 * any() % 100), (number() + 1.001) / 2,
                       (number() + 1) / 4, point);
    if (token < 0 || token >= n) fail("no token", token, n, 0);
    logits[any() % (uint32_t)n] = 0.0f / 0.0f;
    if (sample(logits, n, 1, 0, 1, 0, point) != -1) fail("a NaN was drawn", 0, n, 0);
    free(logits);
}

static void *caller(void *of) {
    Weight *w = of;
    float x[3 * DIM], out[3 * DIM];
    for (int i = 0; i < 3 * DIM; i++) x[i] = 1;
    for (int i = 0; i < 40; i++)
        if (!matmul(w, 3, x, out, 1 + i % 5, i % 2)) abort();
    return 0;
}

int main(int count, char **arguments) {
    int rounds = count > 1 ? atoi(arguments[1]) : 1;
    static const int threads[] = {1, 2, 3, 5, 8, 16, 32, 64};
    if (constant("STRIP") != STRIP || constant("nothing") != -1) fail("constant", 0, 0, 0);
    for (int round = 0; round < rounds; round++)
        for (int level = 0; level < 3; level++) {
            if (choose_kernels(level) != level) continue;
            for (int i = 0; i < 200; i++) check_sample();
            for (int kind = F32; kind <= INT4_TILES_WITH_MINS; kind++) {
                Model m = make_model(kind);
                for (int t = 0; t < 8; t++) {
                    int tiles = kind >= INT8_TILES;
                    check_matmul(kind, tiles ? 112 : 1 + any() % 99, tiles ? 64 : 1 + any() % 99, 1 + any() % 40,
                                 threads[t]);
                    check_decode(&m, kind, 1, 1, (int)(any() % 300), threads[t]);
                    check_decode(&m, kind, 1 + any() % 6, 3, (int)(any() % 300), threads[t]);
                    check_decode(&m, kind, 17 + any() % 14, 1, (int)(any() % 280), threads[t]);
                }
                free_model(&m);
            }
        }
    Weight w = make_weight(INT8_TILES, DIM, DIM); /* callers on threads of their own, then a child, then the end */
    pthread_t ids[4];
    for (int i = 0; i < 4; i++) pthread_create(ids + i, 0, caller, &w);
    for (int i = 0; i < 4; i++) pthread_join(ids[i], 0);
#if !defined(__SANITIZE_THREAD__) /* which can't follow a fork of a process with threads */
    pid_t child = fork();
    if (!child) {
        caller(&w);
        release();
        _exit(0);
    }
    int status = 1;
    waitpid(child, &status, 0);
    if (status) fail("the child", 0, 0, 0);
#endif
    caller(&w);
    free_weight(&w);
    release();
    free_scratch();
    puts("all equal");
    return 0;
}
