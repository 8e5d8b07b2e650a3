/* What Python calls: one product with a stored weight, and all layers of Llama 3 for a few tokens at once.
 *
 * `block` is model.block written out, in phases that all threads work on together; where one needs all of what another
 * makes, that one is settled first.
 */
#include "native.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

static const Kernels *kernels = &portable_kernels;

/* Use the best kernels up to `most`: 0 plain C, 1 AVX2, 2 AVX-512 with VNNI. Returns which. */
EXPORT int choose_kernels(int most) {
    kernels = &portable_kernels;
    int chosen = 0;
#ifdef HAS_X86
    __builtin_cpu_init();
    int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (most >= 1 && avx2) {
        kernels = &avx2_kernels;
        chosen = 1;
    }
    if (most >= 2 && avx2 && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl")) {
        prepare_avx512();
        kernels = &avx512_kernels;
        chosen = 2;
    }
#endif
    return chosen;
}

/* Memory for one call, kept for the next one of the same thread. */
typedef struct { char *at, *end; } Scratch;
static _Thread_local struct { char *memory; size_t size; } scratch;

static int reserve(Scratch *s, size_t size) {
    if (scratch.size < size) {
        free(scratch.memory);
        scratch.memory = malloc(size);
        scratch.size = scratch.memory ? size : 0;
    }
    s->at = scratch.memory;
    s->end = scratch.memory + scratch.size;
    return scratch.memory != 0;
}

static void *take(Scratch *s, size_t size) {
    char *at = s->at;
    s->at += (size + 63) / 64 * 64;
    return at;
}

static size_t input_size(int64_t n, int64_t columns) {
    return n * columns * 6 + n * (columns / GROUP) * 8 + 5 * 64;
}

static Input make_input(Scratch *s, int n, int columns) {
    Input in = {.n = n, .columns = columns};
    in.floats = take(s, sizeof(float) * n * columns);
    in.high = take(s, (size_t)n * columns);
    in.low = take(s, (size_t)n * columns);
    in.scales = take(s, sizeof(float) * n * (columns / GROUP));
    in.sums = take(s, sizeof(int32_t) * n * (columns / GROUP));
    return in;
}

static void round_input(const Input *in, int i) {
    int64_t at = (int64_t)i * in->columns, group = (int64_t)i * (in->columns / GROUP);
    kernels->round(in->floats + at, in->columns, in->high + at, in->low + at, in->scales + group, in->sums + group);
}

static int strips_of(const Weight *w) { return (w->rows + STRIP - 1) / STRIP; }

/* How many strips a thread takes at once: enough to be read as one stream, few enough that all end together. */
static int piece(const Weight *w, int threads) {
    int64_t values = (int64_t)w->columns * STRIP, strips = strips_of(w);
    int64_t most = strips / (8 * threads) + 1, wanted = (1 << 18) / values + 1; /* of 2^15 memory gives a tenth less */
    return (int)(wanted < most ? wanted : most);
}

/* The weight comes next: its memory is fetched from the beginning of this thread's share, a little at once and more
 * whenever there is nothing else to do. */
static void warm(const Weight *w) {
    enum { NOW = 1 << 12, MOST = 1 << 17 };
    static const int bits[] = {32, 16, 16, 8, 8, 4, 4};
    int64_t begin = (int64_t)share_of(strips_of(w)) * STRIP * w->columns * bits[w->kind] / 8;
    int64_t end = (int64_t)w->rows * w->columns * bits[w->kind] / 8;
    if (end > begin + MOST) end = begin + MOST;
    const char *values = w->values;
    for (int64_t at = begin; at < begin + NOW && at < end; at += 64) __builtin_prefetch(values + at, 0, 2);
    expect(values + begin + NOW, values + end);
}

/* For each strip of the weight that this thread gets in a phase, and each few inputs. */
#define FOR_EACH_STRIP(w, in, phase, size, strip, first, some)                                                         \
    FOR_EACH (strip, phase, size, strips_of(w))                                                                        \
        for (int first = 0, some; first < (in)->n && (some = (in)->n - first < SOME ? (in)->n - first : SOME, 1);      \
             first += some)

/* One product: out[i] = weight · x[i]. */
typedef struct {
    const Weight *weight;
    Input in;
    float *out;
    int threads;
} Product;

static void product_work(void *argument) {
    Product *p = argument;
    const Weight *w = p->weight;
    if (w->kind >= INT8_TILES) {
        FOR_EACH (i, 0, 1, p->in.n) round_input(&p->in, i);
        settle(0, p->in.n);
    }
    int size = piece(w, p->threads);
    FOR_EACH_STRIP(w, &p->in, 1, size, strip, first, some) {
        float out[SOME][STRIP];
        kernels->strip(w, strip, &p->in, first, some, out);
        int rows = w->rows - STRIP * strip < STRIP ? w->rows - STRIP * strip : STRIP;
        for (int i = 0; i < some; i++)
            memcpy(p->out + (int64_t)(first + i) * w->rows + STRIP * strip, out[i], sizeof(float) * rows);
    }
    settle(1, strips_of(w));
}

/* out [n][rows] = x [n][columns] · weightᵀ. Returns 0 where there is no memory for it. */
EXPORT int product(const Weight *w, int n, const float *x, float *out, int threads, int last) {
    Scratch s;
    if (!reserve(&s, input_size(n, w->columns))) return 0;
    Product p = {w, make_input(&s, n, w->columns), out, threads};
    p.in.floats = (float *)x;
    return run(product_work, &p, 2, threads, last);
}

/* Rows of a weight as floats, out [n][columns]: what an embedding is read by. */
EXPORT void rows(const Weight *w, int n, const int64_t *index, float *out) {
    int bits = w->kind == INT8_TILES ? 8 : 4, middle = w->kind == INT4_TILES ? 8 : 0;
    for (int i = 0; i < n; i++, out += w->columns) {
        int r = (int)(index[i] % STRIP);
        for (int c = 0; c < w->columns; c++) {
            int64_t at = index[i] * w->columns + c;
            if (w->kind == F32) out[c] = ((const float *)w->values)[at];
            if (w->kind == BF16) out[c] = from_bf16(((const uint16_t *)w->values)[at]);
            if (w->kind == F16) out[c] = from_f16(((const uint16_t *)w->values)[at]);
            if (w->kind == INT8_ROWS) {
                float scale = ((const float *)w->scales)[index[i] * w->groups + c / (w->columns / w->groups)];
                out[c] = ((const int8_t *)w->values)[at] * scale;
            }
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

/* One layer. */
typedef struct {
    const float *attention_norm, *ffn_norm;
    Weight wq, wk, wv, wo, w1, w2, w3;
} Layer;

typedef struct {
    int32_t dim, heads, kv_heads, head_dim, hidden;
    float eps;
} Sizes;

/* Where the tokens stand: token i is at `positions[i]` of the cache's row `rows[i]`, which has `slots` slots. */
typedef struct {
    int32_t n, slots;
    const int32_t *rows, *positions;
    const float *rotations; /* [every position][head_dim / 2] complex */
} Tokens;

enum { FEW = 16 };

/* The phases of a layer. */
enum { NORM, QUERY, KEY, VALUE, KEEP, ATTEND, JOIN, OUT, FFN_NORM, GATE, ROUND, DOWN, PHASES };

typedef struct {
    const Layer *layer; /* of `n_layers`, the first, or within `block` its own; so too keys, values and phase */
    int n_layers, phase;
    const Weight *head; /* or 0, and x becomes what goes into it */
    float *logits;
    int alone; /* the tokens are so few that each thread prepares the inputs of all products for itself */
    const float *last_norm;
    const Sizes *sizes;
    const Tokens *tokens;
    const Kept *keys, *values;
    float *x, *q, *k, *v;
    float *parts, *most, *totals; /* of each token, chunk and head: what it saw, its largest score, its weight */
    Input *inputs; /* `narrow`, `attended` and `wide` of each thread where they're alone */
    Input narrow, attended, wide;
    int stretch, chunks, threads; /* slots in a chunk; chunks that the longest row has, 0: each token goes through its own */
} Call;

static void norm(const float *x, const float *weight, int n, float eps, float *out) {
    float scale = 1 / sqrtf(kernels->dot(x, x, n) / n + eps);
    for (int i = 0; i < n; i++) out[i] = x[i] * scale * weight[i];
}

/* Turn the pairs of a strip of q or k by their token's rotation. Pairs never cross a strip, heads may. */
static void rotate(float *strip, int row, const float *rotation, int head_dim) {
    for (int r = 0; r < STRIP; r += 2) {
        const float *turn = rotation + (row + r) % head_dim;
        float a = strip[r], b = strip[r + 1];
        strip[r] = a * turn[0] - b * turn[1];
        strip[r + 1] = a * turn[1] + b * turn[0];
    }
}

static void project(const Call *c, const Weight *w, int phase, float *to, int turns) {
    int size = piece(w, c->threads), head_dim = c->sizes->head_dim;
    FOR_EACH_STRIP(w, &c->narrow, c->phase + phase, size, strip, first, some) {
        float out[SOME][STRIP];
        kernels->strip(w, strip, &c->narrow, first, some, out);
        int row = STRIP * strip, rows = w->rows - row < STRIP ? w->rows - row : STRIP;
        for (int i = 0; i < some; i++) {
            if (turns) rotate(out[i], row, c->tokens->rotations + (int64_t)c->tokens->positions[first + i] * head_dim, head_dim);
            memcpy(to + (int64_t)(first + i) * w->rows + row, out[i], sizeof(float) * rows);
        }
    }
}

/* x[i] += weight · in[i] */
static void add_product(const Call *c, const Weight *w, const Input *in, int phase) {
    int size = piece(w, c->threads);
    FOR_EACH_STRIP(w, in, c->phase + phase, size, strip, first, some) {
        float out[SOME][STRIP];
        kernels->strip(w, strip, in, first, some, out);
        int row = STRIP * strip, rows = w->rows - row < STRIP ? w->rows - row : STRIP;
        for (int i = 0; i < some; i++) {
            int64_t at = (int64_t)(first + i) * w->rows + row;
            for (int r = 0; r < rows; r++) c->x[at + r] += out[i][r];
        }
    }
    settle(c->phase + phase, strips_of(w));
}

/* silu(w1 · x) · (w3 · x) */
static void gate(const Call *c) {
    const Weight *w1 = &c->layer->w1, *w3 = &c->layer->w3;
    int size = piece(w1, c->threads);
    FOR_EACH_STRIP(w1, &c->narrow, c->phase + GATE, size, strip, first, some) {
        float gates[SOME][STRIP], ups[SOME][STRIP], minus[STRIP];
        kernels->strip(w1, strip, &c->narrow, first, some, gates);
        kernels->strip(w3, strip, &c->narrow, first, some, ups);
        int row = STRIP * strip, rows = w1->rows - row < STRIP ? w1->rows - row : STRIP;
        for (int i = 0; i < some; i++) {
            float *to = c->wide.floats + (int64_t)(first + i) * w1->rows + row;
            for (int r = 0; r < rows; r++) minus[r] = gates[i][r] > -80 ? -gates[i][r] : 80; /* e^80 is still a float */
            kernels->exp_minus(minus, 0, rows);
            for (int r = 0; r < rows; r++) to[r] = gates[i][r] / (1 + minus[r]) * ups[i][r];
        }
    }
    settle(c->phase + GATE, strips_of(w1));
}

/* x times a Hadamard matrix: each number becomes a sum of all, with signs, so that none stands out; the dot product of
 * two vectors stays what it was, and twice is as good as never. Of a head whose width is no power of two, piece by piece. */
static void spread(float *x, int head_dim) {
    int width = head_dim & -head_dim;
    float root = (float)(1 / sqrt(width));
    for (int step = 1; step < width; step *= 2)
        for (int i = 0; i < head_dim; i++)
            if (!(i & step)) {
                float a = x[i], b = x[i + step];
                x[i] = a + b;
                x[i + step] = a - b;
            }
    for (int i = 0; i < head_dim; i++) x[i] *= root;
}

/* Keep a new key or value in the cache's own form; x is lost. */
static void keep(const Kept *kept, int64_t vector, int head_dim, float *x) {
    int64_t at = vector * head_dim;
    if (kept->kind == CACHE_INT4) spread(x, head_dim);
    if (kept->kind == CACHE_F32) {
        memcpy((float *)kept->values + at, x, sizeof(float) * head_dim);
    } else if (kept->kind == CACHE_BF16) {
        for (int i = 0; i < head_dim; i++) { /* to nearest, ties to even */
            uint32_t bits;
            memcpy(&bits, x + i, 4);
            uint16_t nan = (uint16_t)((bits >> 16) | 64);
            ((uint16_t *)kept->values)[at + i] =
                x[i] != x[i] ? nan : (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
        }
    } else {
        int top = kept->kind == CACHE_INT8 ? 127 : 7, half = kept->group / 2;
        for (int begin = 0; begin < head_dim; begin += kept->group) {
            float most = 0, nothing = 0;
            for (int i = begin; i < begin + kept->group; i++) {
                most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
                nothing += 0 * x[i];
            }
            /* A subnormal scale has no inverse that is a float: the group becomes zeros. */
            float scale = most / top, inverse = scale >= FLT_MIN && nothing == 0 ? 1 / scale : 0;
            kept->scales[vector * (head_dim / kept->group) + begin / kept->group] = scale + nothing;
            for (int i = 0; i < kept->group; i++) {
                int rounded = inverse > 0 ? (int)lrintf(x[begin + i] * inverse) : 0;
                if (kept->kind == CACHE_INT8) {
                    ((int8_t *)kept->values)[at + begin + i] = (int8_t)rounded;
                } else {
                    uint8_t *byte = (uint8_t *)kept->values + (at + begin) / 2 + i % half;
                    *byte = i < half ? (uint8_t)(rounded + 8) : (uint8_t)(*byte | (rounded + 8) << 4);
                }
            }
        }
    }
}

/* The keys or values of head g in n slots as floats, `stride` apart: where they are kept, or widened into `room`. */
static const float *vectors_of(const Kept *kept, int64_t first, int G, int K, int n, float *room, int64_t *stride) {
    if (kept->kind == CACHE_F32) {
        *stride = (int64_t)G * K;
        return (const float *)kept->values + first * K;
    }
    kernels->widen(kept, first, G, n, K, room);
    *stride = K;
    return room;
}

/* Ask for memory that will be read soon: lines of a cache that the processor doesn't guess by itself. */
static void fetch(const Kept *kept, int64_t first, int64_t vectors, int K) {
    static const int bits[] = {32, 16, 8, 4};
    const char *at = (const char *)kept->values + first * K * bits[kept->kind] / 8;
    for (int64_t byte = 0; byte < vectors * K * bits[kept->kind] / 8; byte += 64) __builtin_prefetch(at + byte, 0, 2);
}

/* What all heads of token i see in one chunk of slots: of each, its largest score, the sum of its weights, and the sum
 * of the values times these. Slot after slot, all heads of each, as they lie in memory. */
static void attend(const Call *c, int i, int chunk, float *parts, float *most, float *totals) {
    enum { SLOTS = 8 };
    const Sizes *z = c->sizes;
    int K = z->head_dim, G = z->kv_heads, H = z->heads, R = H / G, begin = chunk * c->stretch;
    int n = c->tokens->positions[i] + 1 - begin < c->stretch ? c->tokens->positions[i] + 1 - begin : c->stretch;
    int64_t first = ((int64_t)c->tokens->rows[i] * c->tokens->slots + begin) * G, stride;
    float root = 1 / sqrtf((float)K), scores[H][CHUNK], room[CHUNK * K];
    for (int s = 0; s < n; s += SLOTS) {
        int some = n - s < SLOTS ? n - s : SLOTS;
        fetch(c->keys, first + (int64_t)(s + 2 * SLOTS) * G, (int64_t)some * G, K);
        fetch(c->values, first + (int64_t)s * G, (int64_t)some * G, K);
        for (int g = 0; g < G; g++) {
            const float *k = vectors_of(c->keys, first + (int64_t)s * G + g, G, K, some, room, &stride);
            kernels->scores(c->q + ((int64_t)i * H + g * R) * K, R, K, k, stride, some, &scores[g * R][s]);
        }
    }
    for (int h = 0; h < H; h++) {
        for (int s = 0; s < n; s++) scores[h][s] *= root;
        most[h] = kernels->largest(scores[h], n);
        totals[h] = kernels->exp_minus(scores[h], most[h], n);
    }
    for (int g = 0; g < G; g++) {
        const float *v = vectors_of(c->values, first + g, G, K, n, room, &stride);
        kernels->mix(scores[g * R], R, K, v, stride, n, parts + (int64_t)g * R * K);
    }
}

static int chunks_of(const Call *c, int i) { return c->tokens->positions[i] / c->stretch + 1; }

/* The softmax over chunk after chunk: e^(s − most) = e^(s − most of the chunk) · e^(most of the chunk − most). What was
 * seen so far and one more chunk, of every head; `most` and `total` are those so far. */
static void join(const Sizes *z, float *out, float *most, float *total, const float *part, const float *its_most,
                 const float *its_total) {
    for (int h = 0; h < z->heads; h++, out += z->head_dim, part += z->head_dim) {
        float larger = its_most[h] > most[h] ? its_most[h] : most[h];
        float old = expf(most[h] - larger), new = expf(its_most[h] - larger);
        for (int d = 0; d < z->head_dim; d++) out[d] = old * out[d] + new * part[d];
        total[h] = old * total[h] + new * its_total[h];
        most[h] = larger;
    }
}

/* Token i's attention from its chunks: those that were looked at already, or else each now. */
static void join_chunks(const Call *c, int i) {
    const Sizes *z = c->sizes;
    int H = z->heads, K = z->head_dim, looked_at = c->chunks > 0;
    float *out = c->attended.floats + (int64_t)i * H * K, most[H], total[H];
    memset(out, 0, sizeof(float) * H * K);
    for (int h = 0; h < H; h++) most[h] = -INFINITY, total[h] = 0;
    for (int chunk = 0; chunk < chunks_of(c, i); chunk++) {
        int64_t at = (looked_at ? (int64_t)i * c->chunks + chunk : i) * H;
        if (!looked_at) attend(c, i, chunk, c->parts + at * K, c->most + at, c->totals + at);
        join(z, out, most, total, c->parts + at * K, c->most + at, c->totals + at);
    }
    for (int h = 0; h < H; h++) {
        for (int d = 0; d < K; d++) out[h * K + d] /= total[h];
        if (c->values->kind == CACHE_INT4) spread(out + h * K, K);
    }
    round_input(&c->attended, i);
}

/* Make the input of the weight `next`, vector by vector. Of few, each thread makes all for itself, which is sooner done
 * than waiting for one another. Who comes too late for that reads what others have overwritten since; but then those are
 * through with all that the input was for. */
#define MAKE_INPUT(c, p, next, i, WORK)                                                                                    do {                                                                                                                       warm(next);                                                                                                            if ((c)->alone) {                                                                                                          for (int i = 0; i < (c)->tokens->n; i++) WORK;                                                                     } else {                                                                                                                   FOR_EACH (i, (c)->phase + (p), 1, (c)->tokens->n) WORK;                                                                settle((c)->phase + (p), (c)->tokens->n);                                                                          }                                                                                                                  } while (0)

static void norm_and_round(const Call *c, const float *weight, int i) {
    int64_t at = (int64_t)i * c->sizes->dim;
    norm(c->x + at, weight, c->sizes->dim, c->sizes->eps, c->narrow.floats + at);
    round_input(&c->narrow, i);
}

static void block(const Call *c) {
    const Layer *l = c->layer;
    const Tokens *t = c->tokens;
    int n = t->n, K = c->sizes->head_dim, H = c->sizes->heads, G = c->sizes->kv_heads, R = H / G, phase = c->phase;

    MAKE_INPUT(c, NORM, &l->wq, i, norm_and_round(c, l->attention_norm, i));
    project(c, &l->wq, QUERY, c->q, 1); /* whoever is done with one goes on with the next */
    project(c, &l->wk, KEY, c->k, 1);
    project(c, &l->wv, VALUE, c->v, 0);
    settle(phase + QUERY, strips_of(&l->wq));
    settle(phase + KEY, strips_of(&l->wk));
    settle(phase + VALUE, strips_of(&l->wv));
    FOR_EACH (item, phase + KEEP, 1, n * G) { /* cache.extend */
        int i = item / G, g = item % G;
        int64_t vector = ((int64_t)t->rows[i] * t->slots + t->positions[i]) * G + g;
        for (int h = g * R; c->keys->kind == CACHE_INT4 && h < (g + 1) * R; h++) /* as the keys that it will meet */
            spread(c->q + ((int64_t)i * H + h) * K, K);
        keep(c->keys, vector, K, c->k + (int64_t)item * K);
        keep(c->values, vector, K, c->v + (int64_t)item * K);
    }
    settle(phase + KEEP, n * G);
    FOR_EACH (item, phase + ATTEND, 1, n * c->chunks) /* of few tokens, a chunk of slots at a time */
        if (item % c->chunks < chunks_of(c, item / c->chunks)) {
            int64_t at = (int64_t)item * H;
            attend(c, item / c->chunks, item % c->chunks, c->parts + at * K, c->most + at, c->totals + at);
        }
    settle(phase + ATTEND, n * c->chunks);
    MAKE_INPUT(c, JOIN, &l->wo, i, join_chunks(c, i)); /* of many tokens, all of attention */
    add_product(c, &l->wo, &c->attended, OUT);
    MAKE_INPUT(c, FFN_NORM, &l->w1, i, norm_and_round(c, l->ffn_norm, i));
    gate(c);
    MAKE_INPUT(c, ROUND, &l->w2, i, round_input(&c->wide, i));
    add_product(c, &l->w2, &c->wide, DOWN);
}

static void decode_work(void *argument) {
    Call own = *(const Call *)argument;
    if (own.alone) {
        const Input *inputs = own.inputs + 3 * own_number();
        own.narrow = inputs[0], own.attended = inputs[1], own.wide = inputs[2];
    }
    for (; own.phase < PHASES * own.n_layers; own.phase += PHASES) {
        block(&own);
        own.layer++, own.keys++, own.values++;
    }
    const Call *c = &own;
    int n = c->tokens->n, D = c->sizes->dim, last = c->phase;
    if (c->head) {
        MAKE_INPUT(c, NORM, c->head, i, norm_and_round(c, c->last_norm, i));
        project(c, c->head, 1, c->logits, 0);
        settle(last + 1, strips_of(c->head));
    } else {
        FOR_EACH (i, last, 1, n) norm(c->x + (int64_t)i * D, c->last_norm, D, c->sizes->eps, c->x + (int64_t)i * D);
        settle(last, n);
    }
}

/* All layers and the last norm: x [n][dim] becomes their output; with a head, logits [n][rows] become its. The new keys and
 * values go into the caches, one of each a layer. Returns 0 without memory. */
EXPORT int decode(const Layer *layers, int n_layers, const float *last_norm, const Sizes *sizes, const Tokens *tokens,
                  const Kept *keys, const Kept *values, float *x, const Weight *head, float *logits, int threads) {
    int64_t n = tokens->n, K = sizes->head_dim, all = n * sizes->heads * K, kv = n * sizes->kv_heads * K;
    int longest = 0;
    for (int i = 0; i < n; i++) longest = tokens->positions[i] >= longest ? tokens->positions[i] + 1 : longest;
    /* Each thread gets a part of the attention, even where few tokens see little. */
    int even = (longest / threads + 7) / 8 * 8, stretch = n < threads && even < CHUNK ? even : CHUNK;
    stretch = stretch < 8 ? 8 : stretch;
    int chunks = n <= FEW ? (longest - 1) / stretch + 1 : 0; /* as pieces of work; with many tokens there are enough */
    int64_t parts = chunks ? chunks : 1;
    int alone = n < threads && chunks > 0; /* what join_chunks makes itself lies in one place for all threads */
    int copies = alone ? threads : 1;
    size_t floats = all + 2 * kv + all * parts + 2 * n * sizes->heads * parts;
    size_t inputs = input_size(n, sizes->dim) + input_size(n, sizes->heads * K) + input_size(n, sizes->hidden);
    Scratch s;
    if (!reserve(&s, sizeof(float) * floats + 7 * 64 + copies * (inputs + 3 * sizeof(Input)))) return 0;
    Call c = {.layer = layers, .n_layers = n_layers, .sizes = sizes, .tokens = tokens, .keys = keys, .values = values};
    c.last_norm = last_norm;
    c.x = x;
    c.head = head;
    c.logits = logits;
    c.stretch = stretch;
    c.chunks = chunks;
    c.threads = threads;
    c.alone = alone;
    c.q = take(&s, sizeof(float) * all);
    c.k = take(&s, sizeof(float) * kv);
    c.v = take(&s, sizeof(float) * kv);
    c.parts = take(&s, sizeof(float) * all * parts);
    c.most = take(&s, sizeof(float) * n * sizes->heads * parts);
    c.totals = take(&s, sizeof(float) * n * sizes->heads * parts);
    c.inputs = take(&s, sizeof(Input) * 3 * copies);
    for (int i = 0; i < copies; i++) {
        Input *own = c.inputs + 3 * i;
        own[0] = c.narrow = make_input(&s, (int)n, sizes->dim);
        own[1] = c.attended = make_input(&s, (int)n, (int)(sizes->heads * K));
        own[2] = c.wide = make_input(&s, (int)n, sizes->hidden);
        own[2].floats = c.inputs[2].floats; /* all write one after the other what each will round */
    }
    return run(decode_work, &c, PHASES * n_layers + 2, threads, 0);
}
