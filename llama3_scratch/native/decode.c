/* All layers of Llama 3 for a few tokens at once, as one call.
 *
 * `block` is model.block written out, in phases that all threads work on together; where one needs all of what another
 * makes, that one is waited for first.
 */
#include "native.h"

#include <float.h>
#include <math.h>
#include <string.h>

enum { TOKENS_AT_ONCE = 32 }; /* of many, those whose attention is one piece of work */

/* The phases of a layer. */
enum { NORM, QUERY, KEY, VALUE, STORE, ATTEND, ATTEND_MANY, JOIN, OUT, FFN_NORM, GATE, ROUND, DOWN, PHASES };

/* All that the threads of one call share; each works with a copy in which `layer`, `keys`, `values` and `phase` go on
 * from layer to layer, and the last members are its own. */
typedef struct {
    const Layer *layer;
    const CachedVectors *keys, *values;
    int n_layers, phase;
    const Weight *last_norm, *head; /* or 0, and x becomes what goes into it */
    const Sizes *sizes;
    const Tokens *tokens;
    int threads;
    int redundant;     /* the tokens are so few that each thread prepares the inputs of all matmuls for itself */
    int chunks;        /* that the longest row has; 0 where the tokens are many, and each goes through its own */
    int heads_at_once; /* key/value heads of a chunk that a thread attends to at once */
    float *x, *q, *k, *v, *gated, *logits;
    /* Of each token, chunk and head: what it saw, its largest score, its weight. Without `chunks` each thread has them
     * for one token and chunk. */
    float *parts, *maxima, *totals;
    /* Each thread's own: */
    Input normed, attended, wide;           /* what goes into the matmuls; shared unless `redundant` */
    float *scores, *vectors, *turned;       /* of a chunk: [queries][CHUNK_SLOTS], two of [CHUNK_SLOTS][head_dim] */
    float *softmax_maxima, *softmax_totals; /* [queries]: the heads, or those of TOKENS_AT_ONCE */
} Call;

/* A thread that comes late to a phase whose pieces are all done may read what the others are overwriting since. It
 * makes an input of that which nobody uses, for all that the input is for is done too. Only functions with this mark
 * may. */
#if defined(__GNUC__) || defined(__clang__)
#define MAY_READ_LATE __attribute__((no_sanitize_thread))
#else
#define MAY_READ_LATE
#endif

MAY_READ_LATE static void copy(float *to, const float *from, int n) {
    for (int i = 0; i < n; i++) to[i] = from[i];
}

static void norm(float *x, const Weight *weight, float eps) {
    int n = weight->columns;
    float scale = 1 / sqrtf(kernels->dot(x, x, n) / n + eps);
    if (weight->kind == F32) {
        for (int i = 0; i < n; i++) x[i] = x[i] * scale * ((const float *)weight->values)[i];
    } else {
        for (int i = 0; i < n; i++) x[i] = x[i] * scale * number_at(weight, i);
    }
}

/* Turn the pairs of a strip of q or k by their token's rotation. Pairs never cross a strip, heads may. */
static void rotate(float *strip, int rows, int row, const float *rotation, int head_dim) {
    for (int r = 0; r < rows; r += 2) {
        const float *turn = rotation + (row + r) % head_dim;
        float a = strip[r], b = strip[r + 1];
        strip[r] = a * turn[0] - b * turn[1];
        strip[r + 1] = a * turn[1] + b * turn[0];
    }
}

/* to[i] = weight · normed[i], rotated where it is q or k. */
static void project(const Call *c, const Weight *w, int phase, float *to, int rotated) {
    const Tokens *t = c->tokens;
    int head_dim = c->sizes->head_dim;
    FOR_EACH (strip, c->phase + phase, strips_at_once(w, c->threads), strips_of(w)) {
        for (int first = 0; first < c->normed.n; first += MAX_INPUTS) {
            int row = STRIP * strip, some = inputs_at_once(&c->normed, first);
            float *out = to + (int64_t)first * w->rows + row;
            kernels->strip(w, strip, &c->normed, first, some, out, w->rows);
            for (int i = 0; i < some && rotated; i++)
                rotate(out + (int64_t)i * w->rows, rows_of_strip(w, strip), row,
                       t->rotations + (int64_t)t->positions[first + i] * head_dim, head_dim);
        }
    }
}

/* x[i] += weight · in[i] */
static void add_matmul(const Call *c, const Weight *w, const Input *in, int phase) {
    FOR_EACH (strip, c->phase + phase, strips_at_once(w, c->threads), strips_of(w)) {
        for (int first = 0; first < in->n; first += MAX_INPUTS) {
            float out[MAX_INPUTS][STRIP];
            int some = inputs_at_once(in, first), rows = rows_of_strip(w, strip);
            kernels->strip(w, strip, in, first, some, out[0], STRIP);
            for (int i = 0; i < some; i++) {
                float *x = c->x + (int64_t)(first + i) * w->rows + STRIP * strip;
                for (int r = 0; r < rows; r++) x[r] += out[i][r];
            }
        }
    }
    wait_for(c->phase + phase, strips_of(w));
}

/* gated[i] = silu(w1 · x[i]) · (w3 · x[i]) */
static void gate(const Call *c) {
    const Weight *w1 = &c->layer->w1, *w3 = &c->layer->w3;
    FOR_EACH (strip, c->phase + GATE, strips_at_once(w1, c->threads), strips_of(w1)) {
        for (int first = 0; first < c->normed.n; first += MAX_INPUTS) {
            float gates[MAX_INPUTS][STRIP], ups[MAX_INPUTS][STRIP];
            int some = inputs_at_once(&c->normed, first), rows = rows_of_strip(w1, strip);
            kernels->strip(w1, strip, &c->normed, first, some, gates[0], STRIP);
            kernels->strip(w3, strip, &c->normed, first, some, ups[0], STRIP);
            for (int i = 0; i < some; i++)
                kernels->swiglu(gates[i], ups[i], rows, c->gated + (int64_t)(first + i) * w1->rows + STRIP * strip);
        }
    }
    wait_for(c->phase + GATE, strips_of(w1));
}

/* x times a Hadamard matrix: each number becomes a sum of all, with signs, so that none stands out; the dot product of
 * two vectors stays what it was, and twice is as good as never. in pieces where the head's width is no power of two. */
static void hadamard(float *x, int head_dim) {
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

/* Store a new key or value in the cache's own form; x is overwritten. */
static void store(const CachedVectors *cached, int64_t vector, int head_dim, float *x) {
    int64_t at = vector * head_dim;
    if (cached->kind == CACHE_INT4) hadamard(x, head_dim);
    if (cached->kind == CACHE_F32) {
        memcpy((float *)cached->values + at, x, sizeof(float) * head_dim);
    } else if (cached->kind == CACHE_BF16) {
        for (int i = 0; i < head_dim; i++) { /* to nearest, ties to even */
            uint32_t bits;
            memcpy(&bits, x + i, 4);
            uint16_t nan = (uint16_t)((bits >> 16) | 64);
            ((uint16_t *)cached->values)[at + i] =
                x[i] != x[i] ? nan : (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
        }
    } else {
        int top = cached->kind == CACHE_INT8 ? 127 : 7, half = cached->group / 2;
        for (int begin = 0; begin < head_dim; begin += cached->group) {
            float max = 0, zero_or_nan = 0;
            for (int i = begin; i < begin + cached->group; i++) {
                max = fabsf(x[i]) > max ? fabsf(x[i]) : max;
                zero_or_nan += 0 * x[i];
            }
            /* A subnormal scale has no inverse that is a float: the group becomes zeros. */
            float scale = max / top, inverse = scale >= FLT_MIN && zero_or_nan == 0 ? 1 / scale : 0;
            cached->scales[vector * (head_dim / cached->group) + begin / cached->group] = scale + zero_or_nan;
            for (int i = 0; i < cached->group; i++) {
                int rounded = inverse > 0 ? (int)lrintf(x[begin + i] * inverse) : 0;
                if (cached->kind == CACHE_INT8) {
                    ((int8_t *)cached->values)[at + begin + i] = (int8_t)rounded;
                } else {
                    uint8_t *byte = (uint8_t *)cached->values + (at + begin) / 2 + i % half;
                    *byte = i < half ? (uint8_t)(rounded + 8) : (uint8_t)(*byte | (rounded + 8) << 4);
                }
            }
        }
    }
}

/* The keys or values of head g in n slots as floats, `stride` apart: where they lie, or widened into `room`. */
static const float *vectors_of(const CachedVectors *cached, int64_t first, int G, int K, int n, float *room,
                               int64_t *stride) {
    if (cached->kind == CACHE_F32) {
        *stride = (int64_t)G * K;
        return (const float *)cached->values + first * K;
    }
    kernels->widen(cached, first, G, n, K, room);
    *stride = K;
    return room;
}

/* Ask for memory that will be read soon: lines of a cache that the processor doesn't guess by itself. */
static void prefetch_cached(const CachedVectors *cached, int64_t first, int64_t vectors, int K) {
    static const int bits[] = {32, 16, 8, 4};
    const char *at = (const char *)cached->values + first * K * bits[cached->kind] / 8;
    for (int64_t byte = 0; byte < vectors * K * bits[cached->kind] / 8; byte += 64) __builtin_prefetch(at + byte, 0, 2);
}

/* The slot of the cache, counted through all pages, in which a row has this position. */
static int64_t slot_of(const Tokens *t, int row, int position) {
    int page = t->page_table[(int64_t)row * t->pages_per_row + position / t->page_slots];
    return (int64_t)page * t->page_slots + position % t->page_slots;
}

/* Of each query's n scores what its softmax over them needs: e^(score − the largest one), that one, and their sum. */
static void weigh(float *scores, int queries, int K, int n, float *maxima, float *totals) {
    float root = 1 / sqrtf((float)K);
    for (int i = 0; i < queries; i++, scores += CHUNK_SLOTS) {
        for (int s = 0; s < n; s++) scores[s] *= root;
        maxima[i] = kernels->largest(scores, n);
        totals[i] = kernels->exp_minus(scores, maxima[i], n);
    }
}

/* What the heads of token i that share the key/value heads begin … end see in one chunk of slots: of each, its largest
 * score, the sum of its weights, and the sum of the values times these. Slot after slot, all heads of each, as they lie
 * in memory. A chunk is always CHUNK_SLOTS and a head knows nothing of the others: so the result is the same, to the
 * bit, whatever else is in the call and however the work is shared out. */
static void attend(const Call *c, int i, int chunk, int begin, int end, float *parts, float *maxima, float *totals) {
    enum { SLOTS_AT_ONCE = 8 };
    const Sizes *z = c->sizes;
    int K = z->head_dim, G = z->kv_heads, R = z->heads / G, heads = end - begin;
    int seen = c->tokens->positions[i] + 1 - chunk * CHUNK_SLOTS, n = seen < CHUNK_SLOTS ? seen : CHUNK_SLOTS;
    int64_t first = slot_of(c->tokens, c->tokens->rows[i], chunk * CHUNK_SLOTS) * G, stride;
    for (int s = 0; s < n; s += SLOTS_AT_ONCE) {
        int some = n - s < SLOTS_AT_ONCE ? n - s : SLOTS_AT_ONCE;
        if (heads == G) {
            prefetch_cached(c->keys, first + (int64_t)(s + 2 * SLOTS_AT_ONCE) * G, (int64_t)some * G, K);
            prefetch_cached(c->values, first + (int64_t)s * G, (int64_t)some * G, K);
        }
        for (int g = begin; g < end; g++) {
            const float *k = vectors_of(c->keys, first + (int64_t)s * G + g, G, K, some, c->vectors, &stride);
            const float *q = c->q + ((int64_t)i * z->heads + g * R) * K;
            kernels->scores(q, R, K, k, stride, some, c->scores + (int64_t)g * R * CHUNK_SLOTS + s);
        }
    }
    weigh(c->scores + (int64_t)begin * R * CHUNK_SLOTS, heads * R, K, n, maxima + begin * R, totals + begin * R);
    for (int g = begin; g < end; g++) {
        const float *v = vectors_of(c->values, first + g, G, K, n, c->vectors, &stride);
        int64_t head = (int64_t)g * R;
        kernels->mix(c->scores + head * CHUNK_SLOTS, R, K, v, stride, n, parts + head * K);
    }
}

static int chunks_of(const Call *c, int i) { return c->tokens->positions[i] / CHUNK_SLOTS + 1; }

/* The softmax over chunk after chunk: e^(s − max) = e^(s − max of the chunk) · e^(max of the chunk − max). `out`, `max`
 * and `total` are those of all slots so far, of so many heads; one more chunk joins them. */
MAY_READ_LATE static void join(int heads, int K, float *out, float *max, float *total, const float *part,
                               const float *its_max, const float *its_total) {
    for (int h = 0; h < heads; h++, out += K, part += K) {
        float larger = its_max[h] > max[h] ? its_max[h] : max[h];
        float old = expf(max[h] - larger), new = expf(its_max[h] - larger);
        for (int d = 0; d < K; d++) out[d] = old * out[d] + new * part[d];
        total[h] = old * total[h] + new * its_total[h];
        max[h] = larger;
    }
}

static void begin_joining(int heads, int K, float *out, float *max, float *total) {
    memset(out, 0, sizeof(float) * heads * K);
    for (int h = 0; h < heads; h++) max[h] = -INFINITY, total[h] = 0;
}

static void end_joining(const Call *c, int heads, float *out, const float *total) {
    int K = c->sizes->head_dim;
    for (int h = 0; h < heads; h++, out += K) {
        for (int d = 0; d < K; d++) out[d] /= total[h];
        if (c->values->kind == CACHE_INT4) hadamard(out, K);
    }
}

/* Token i's attention, chunk after chunk: those that were looked at already, or else each now. */
static void attend_alone(const Call *c, int i) {
    int H = c->sizes->heads, K = c->sizes->head_dim;
    float *out = c->attended.floats + (int64_t)i * H * K, *max = c->softmax_maxima, *total = c->softmax_totals;
    begin_joining(H, K, out, max, total);
    for (int chunk = 0; chunk < chunks_of(c, i); chunk++) {
        int64_t at = c->chunks ? ((int64_t)i * c->chunks + chunk) * H : 0;
        if (!c->chunks) attend(c, i, chunk, 0, c->sizes->kv_heads, c->parts, c->maxima, c->totals);
        join(H, K, out, max, total, c->parts + at * K, c->maxima + at, c->totals + at);
    }
    end_joining(c, H, out, total);
}

/* The attention of the tokens begin … end, all of one row, with the heads that share key/value head g: each chunk is
 * widened once for all of them. What a token gets is what it gets alone, to the bit. */
static void attend_together(const Call *c, int begin, int end, int g) {
    const Tokens *t = c->tokens;
    int H = c->sizes->heads, K = c->sizes->head_dim, G = c->sizes->kv_heads, R = H / G, tokens = end - begin, last = 0;
    const float *q = c->q + ((int64_t)begin * H + g * R) * K;
    float *out = c->attended.floats + ((int64_t)begin * H + g * R) * K;
    for (int i = 0; i < tokens; i++) {
        begin_joining(R, K, out + (int64_t)i * H * K, c->softmax_maxima + i * R, c->softmax_totals + i * R);
        last = t->positions[begin + i] > last ? t->positions[begin + i] : last;
    }
    for (int chunk = 0; chunk * CHUNK_SLOTS <= last; chunk++) {
        int seen[TOKENS_AT_ONCE], slots = last + 1 - chunk * CHUNK_SLOTS;
        for (int i = 0; i < tokens; i++) {
            int its = t->positions[begin + i] + 1 - chunk * CHUNK_SLOTS;
            seen[i] = its < 0 ? 0 : its < CHUNK_SLOTS ? its : CHUNK_SLOTS;
        }
        if (slots > CHUNK_SLOTS) slots = CHUNK_SLOTS;
        int64_t first = slot_of(t, t->rows[begin], chunk * CHUNK_SLOTS) * G + g, stride;
        const float *k = vectors_of(c->keys, first, G, K, slots, c->vectors, &stride);
        kernels->scores_of_tokens(tokens, seen, q, (int64_t)H * K, R, K, k, stride, c->turned, c->scores);
        const float *v = vectors_of(c->values, first, G, K, slots, c->vectors, &stride);
        for (int i = 0; i < tokens; i++) {
            float *scores = c->scores + (int64_t)i * R * CHUNK_SLOTS;
            if (!seen[i]) continue;
            weigh(scores, R, K, seen[i], c->maxima, c->totals);
            kernels->mix(scores, R, K, v, stride, seen[i], c->parts);
            join(R, K, out + (int64_t)i * H * K, c->softmax_maxima + i * R, c->softmax_totals + i * R, c->parts,
                 c->maxima, c->totals);
        }
    }
    for (int i = 0; i < tokens; i++) end_joining(c, R, out + (int64_t)i * H * K, c->softmax_totals + i * R);
}

/* A piece of the attention of many tokens: those of TOKENS_AT_ONCE that have a row in common together, and a token that
 * is alone with its row for all heads at once, as these lie in memory. */
static void attend_piece(const Call *c, int piece) {
    const Tokens *t = c->tokens;
    int G = c->sizes->kv_heads, begin = piece / G * TOKENS_AT_ONCE, g = piece % G;
    int most = begin + TOKENS_AT_ONCE < t->n ? begin + TOKENS_AT_ONCE : t->n;
    for (int end; begin < most; begin = end) {
        for (end = begin + 1; end < most && t->rows[end] == t->rows[begin];) end++;
        if (end - begin > 1) attend_together(c, begin, end, g);
        else if ((begin + g) % G == 0) attend_alone(c, begin);
    }
}

/* Make the input of a matmul for token i. */
typedef void Prepare(const Call *c, int i);

static void round_attended(const Call *c, int i) {
    if (c->chunks) attend_alone(c, i);
    round_input(&c->attended, i);
}

/* Input i of the next matmuls is token `token`. */
static void norm_and_round(const Call *c, const Weight *weight, int token, int i) {
    float *to = c->normed.floats + (int64_t)i * c->sizes->dim;
    copy(to, c->x + (int64_t)token * c->sizes->dim, c->sizes->dim);
    norm(to, weight, c->sizes->eps);
    round_input(&c->normed, i);
}

static void attention_norm(const Call *c, int i) { norm_and_round(c, &c->layer->attention_norm, i, i); }

static void ffn_norm(const Call *c, int i) { norm_and_round(c, &c->layer->ffn_norm, i, i); }

static void last_norm(const Call *c, int i) { norm_and_round(c, c->last_norm, c->tokens->logits_of[i], i); }

static void round_gated(const Call *c, int i) {
    int64_t at = (int64_t)i * c->sizes->hidden;
    if (c->redundant) copy(c->wide.floats + at, c->gated + at, c->sizes->hidden);
    round_input(&c->wide, i);
}

/* Make the input of the weight `next`, token by token. Of few, each thread makes all for itself, which is sooner done
 * than waiting for one another. */
static void make_inputs(const Call *c, int phase, const Weight *next, int n, Prepare *prepare) {
    prefetch_weight(next);
    if (c->redundant) {
        for (int i = 0; i < n; i++) prepare(c, i);
        return;
    }
    FOR_EACH (i, c->phase + phase, 1, n) prepare(c, i);
    wait_for(c->phase + phase, n);
}

static void block(const Call *c) {
    const Layer *l = c->layer;
    const Tokens *t = c->tokens;
    int n = t->n, K = c->sizes->head_dim, H = c->sizes->heads, G = c->sizes->kv_heads, R = H / G, phase = c->phase;

    make_inputs(c, NORM, &l->wq, n, attention_norm);
    project(c, &l->wq, QUERY, c->q, 1); /* whoever is done with one goes on with the next */
    project(c, &l->wk, KEY, c->k, 1);
    project(c, &l->wv, VALUE, c->v, 0);
    wait_for(phase + QUERY, strips_of(&l->wq));
    wait_for(phase + KEY, strips_of(&l->wk));
    wait_for(phase + VALUE, strips_of(&l->wv));
    FOR_EACH (item, phase + STORE, 1, n * G) { /* cache.extend */
        int i = item / G, g = item % G;
        int64_t vector = slot_of(t, t->rows[i], t->positions[i]) * G + g;
        for (int h = g * R; c->keys->kind == CACHE_INT4 && h < (g + 1) * R; h++) /* as the keys that it will meet */
            hadamard(c->q + ((int64_t)i * H + h) * K, K);
        store(c->keys, vector, K, c->k + (int64_t)item * K);
        store(c->values, vector, K, c->v + (int64_t)item * K);
    }
    wait_for(phase + STORE, n * G);
    int parts = (G + c->heads_at_once - 1) / c->heads_at_once;
    FOR_EACH (item, phase + ATTEND, 1, n * c->chunks * parts) { /* of few tokens, a chunk of slots at a time */
        int i = item / parts / c->chunks, chunk = item / parts % c->chunks, begin = item % parts * c->heads_at_once;
        int end = begin + c->heads_at_once < G ? begin + c->heads_at_once : G;
        int64_t at = (int64_t)(item / parts) * H;
        if (chunk < chunks_of(c, i)) attend(c, i, chunk, begin, end, c->parts + at * K, c->maxima + at, c->totals + at);
    }
    wait_for(phase + ATTEND, n * c->chunks * parts);
    int pieces = c->chunks ? 0 : (n + TOKENS_AT_ONCE - 1) / TOKENS_AT_ONCE * G;
    FOR_EACH (piece, phase + ATTEND_MANY, 1, pieces) attend_piece(c, piece); /* of many, all chunks for some of them */
    wait_for(phase + ATTEND_MANY, pieces);
    make_inputs(c, JOIN, &l->wo, n, round_attended);
    add_matmul(c, &l->wo, &c->attended, OUT);
    make_inputs(c, FFN_NORM, &l->w1, n, ffn_norm);
    gate(c);
    make_inputs(c, ROUND, &l->w2, n, round_gated);
    add_matmul(c, &l->w2, &c->wide, DOWN);
}

static void take_parts(Call *c, Scratch *s, size_t parts) {
    c->parts = take(s, sizeof(float) * parts * c->sizes->head_dim);
    c->maxima = take(s, sizeof(float) * parts);
    c->totals = take(s, sizeof(float) * parts);
}

/* Take from the scratch what one thread has for itself. */
static void take_own(Call *c, Scratch *s) {
    size_t H = c->sizes->heads, K = c->sizes->head_dim, queries = H;
    if (!c->chunks) {
        size_t together = TOKENS_AT_ONCE * H / c->sizes->kv_heads;
        queries = together > H ? together : H;
        take_parts(c, s, H);
        c->turned = take(s, sizeof(float) * CHUNK_SLOTS * K);
    }
    c->scores = take(s, sizeof(float) * queries * CHUNK_SLOTS);
    c->vectors = take(s, sizeof(float) * CHUNK_SLOTS * K);
    c->softmax_maxima = take(s, sizeof(float) * queries);
    c->softmax_totals = take(s, sizeof(float) * queries);
}

static void take_inputs(Call *c, Scratch *s) {
    int n = c->tokens->n;
    c->normed = make_input(s, n, c->sizes->dim);
    c->attended = make_input(s, n, c->sizes->heads * c->sizes->head_dim);
    c->wide = make_input(s, n, c->sizes->hidden);
}

/* Take what all threads share, then what each has for itself, one behind the other: `each` gets every thread's. */
static void lay_out(Call *c, Scratch *s, Call *each) {
    size_t n = c->tokens->n, H = c->sizes->heads, K = c->sizes->head_dim, kv = n * c->sizes->kv_heads * K;
    c->q = take(s, sizeof(float) * n * H * K);
    c->k = take(s, sizeof(float) * kv);
    c->v = take(s, sizeof(float) * kv);
    if (c->chunks) take_parts(c, s, n * c->chunks * H);
    take_inputs(c, s);
    c->gated = c->wide.floats;
    for (int thread = 0; thread < c->threads; thread++) {
        Call own = *c;
        if (c->redundant) take_inputs(&own, s);
        take_own(&own, s);
        if (each) each[thread] = own;
    }
}

static void decode_work(void *argument) {
    Call own = ((const Call *)argument)[thread_number()];
    for (; own.phase < PHASES * own.n_layers; own.phase += PHASES) {
        block(&own);
        own.layer++, own.keys++, own.values++;
    }
    const Call *c = &own;
    int n = c->tokens->n, D = c->sizes->dim, last = c->phase;
    if (c->head) {
        own.normed.n = c->tokens->n_logits;
        make_inputs(c, NORM, c->head, own.normed.n, last_norm);
        project(c, c->head, QUERY, c->logits, 0);
        wait_for(last + QUERY, strips_of(c->head));
    } else {
        FOR_EACH (i, last, 1, n) norm(c->x + (int64_t)i * D, c->last_norm, c->sizes->eps);
        wait_for(last, n);
    }
}

/* All layers and the last norm: x [n][dim] becomes their output; with a head, logits [n_logits][rows] become its, of
 * the tokens of which they're wanted. The new keys and values go into the caches, one of each a layer. Returns 0
 * without memory. */
EXPORT int decode(const Layer *layers, int n_layers, const Weight *last_norm, const Sizes *sizes, const Tokens *tokens,
                  const CachedVectors *keys, const CachedVectors *values, float *x, const Weight *head, float *logits,
                  int threads) {
    threads = threads < 1 ? 1 : threads > MAX_THREADS ? MAX_THREADS : threads;
    int n = tokens->n, longest = 1;
    for (int i = 0; i < n; i++) longest = tokens->positions[i] >= longest ? tokens->positions[i] + 1 : longest;
    Call c = {.layer = layers, .n_layers = n_layers, .sizes = sizes, .tokens = tokens, .keys = keys, .values = values};
    c.last_norm = last_norm;
    c.x = x;
    c.head = head;
    c.logits = logits;
    c.threads = threads;
    c.chunks = n <= MAX_SPLIT_TOKENS ? (longest - 1) / CHUNK_SLOTS + 1 : 0;
    /* Each thread gets a part of the attention, even where few tokens see little. */
    c.heads_at_once = n * c.chunks < threads ? 1 : sizes->kv_heads;
    /* Without chunks the threads share what is attended: then each token must be one thread's. */
    c.redundant = n < threads && c.chunks > 0;
    Scratch s = {0, 0};
    take(&s, sizeof(Call) * threads);
    lay_out(&c, &s, 0); /* without memory it only counts */
    if (!reserve(&s, s.used)) return 0;
    Call *each = take(&s, sizeof(Call) * threads);
    lay_out(&c, &s, each);
    return run(decode_work, each, PHASES * n_layers + 2, threads, 0);
}
