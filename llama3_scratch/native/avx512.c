/* Products with tiles for x86-64 with AVX-512 and VNNI: one instruction multiplies 4 columns of a whole strip. */
#include "native.h"
#ifdef HAS_X86
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")
#include <immintrin.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

/* What several instructions use the compiler would have each of them load. */
#define KEEP_IN_REGISTER(x) __asm__("" : "+v"(x))

enum {
    QUADS = GROUP / 4, /* the instruction's operands: 4 columns each */
    AT_ONCE = 4,       /* inputs whose sums grow side by side, since each instruction waits for the one before */
    FEW = 6,           /* inputs with which memory is slower than the products */
};

/* A tile in registers, which many inputs are multiplied by. */
typedef struct {
    __m512i quads[QUADS]; /* unsigned bytes */
    __m512 scales, mins;
} Tile;

INLINE __m512 sixteen_halves(const void *at) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)at)); }

/* The instruction wants unsigned × signed: an int8 weight plus 128 is unsigned. */
INLINE Tile load_tile(int kind, const Weight *w, int64_t at) {
    const __m512i flip = _mm512_set1_epi8((char)0x80), low_halves = _mm512_set1_epi8(15);
    const uint8_t *values = (const uint8_t *)w->values + at * STRIP * GROUP / (kind == INT8_TILES ? 1 : 2);
    Tile tile;
    for (int quad = 0; quad < QUADS; quad++) {
        if (kind == INT8_TILES) {
            tile.quads[quad] = _mm512_xor_si512(_mm512_loadu_si512(values + 64 * quad), flip);
        } else {
            __m512i both = _mm512_loadu_si512(values + 64 * (quad % 4));
            tile.quads[quad] = _mm512_and_si512(quad < 4 ? both : _mm512_srli_epi16(both, 4), low_halves);
        }
    }
    tile.scales = sixteen_halves((const uint16_t *)w->scales + at * STRIP);
    if (kind == INT4_TILES_WITH_MINS) tile.mins = sixteen_halves((const uint16_t *)w->mins + at * STRIP);
    return tile;
}

INLINE __m512i add_quads(__m512i sum, const Tile *tile, int quad, const int8_t *x) {
    int32_t four;
    memcpy(&four, x + 4 * quad, 4);
    return _mm512_dpbusd_epi32(sum, tile->quads[quad], _mm512_set1_epi32(four));
}

/* sums[i] += tile · input i, for n inputs of which `at` is the first one's group. */
INLINE void add_products(int kind, int n, const Tile *tile, const Input *in, int64_t at, int64_t groups, __m512 *sums) {
    int above = kind == INT8_TILES ? 7 : 3; /* by 1 << above the bytes lie above the weights */
    const int8_t *x = in->bytes + at * 2 * GROUP;
    __m512i highs[AT_ONCE], lows[AT_ONCE];
    for (int i = 0; i < n; i++) highs[i] = lows[i] = _mm512_setzero_si512();
    for (int quad = 0; quad < QUADS; quad++) {
        for (int i = 0; i < n; i++) {
            highs[i] = add_quads(highs[i], tile, quad, x + i * groups * 2 * GROUP);
            lows[i] = add_quads(lows[i], tile, quad, x + (i * groups * 2 + 1) * GROUP);
        }
    }
    for (int i = 0; i < n; i++) {
        if (kind != INT4_TILES_WITH_MINS)
            lows[i] = _mm512_sub_epi32(lows[i], _mm512_slli_epi32(_mm512_set1_epi32(in->sums[at + i * groups]), above));
        __m512 sum = _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(highs[i], 8), lows[i]));
        __m512 both = _mm512_mul_ps(tile->scales, _mm512_set1_ps(in->scales[at + i * groups]));
        sums[i] = _mm512_fmadd_ps(sum, both, sums[i]);
        if (kind == INT4_TILES_WITH_MINS)
            sums[i] = _mm512_fmadd_ps(tile->mins, _mm512_set1_ps(in->totals[at + i * groups]), sums[i]);
    }
}

/* `rest`: n % AT_ONCE */
INLINE void strip_times(int kind, int rest, const Weight *w, int strip, const Input *in, int first, int n, float *out,
                        int64_t stride) {
    int64_t groups = w->groups, tile_bytes = STRIP * GROUP / (kind == INT8_TILES ? 1 : 2);
    /* Few inputs use a tile up sooner than the next one comes from memory, so these are asked for long before; with
     * many, what comes too soon drives the inputs out of the first cache. One input goes through int8 so fast that the
     * processor's own prefetching does better, and in a later pass the strip is there. */
    int near = first == 0 && n > FEW ? 2048 : 0, far = n <= FEW && (kind != INT8_TILES || n > 1) ? 8192 : 0;
    __m512 sums[MAX_INPUTS];
    for (int i = 0; i < n; i++) sums[i] = _mm512_setzero_ps();
    for (int64_t g = 0; g < groups; g++) {
        int64_t at = strip * groups + g, of_input = first * groups + g;
        const char *values = (const char *)w->values + at * tile_bytes;
        for (int line = 0; line < tile_bytes && far; line += 64) _mm_prefetch(values + line + far, _MM_HINT_T1);
        for (int line = 0; line < tile_bytes && near; line += 64) _mm_prefetch(values + line + near, _MM_HINT_T0);
        Tile tile = load_tile(kind, w, at);
        int i = 0;
        for (; i + AT_ONCE <= n; i += AT_ONCE)
            add_products(kind, AT_ONCE, &tile, in, of_input + i * groups, groups, sums + i);
        add_products(kind, rest, &tile, in, of_input + i * groups, groups, sums + i);
    }
    for (int i = 0; i < n; i++) _mm512_storeu_ps(out + i * stride, sums[i]);
}

static void strip_of(const Weight *w, int strip, const Input *in, int first, int n, float *out, int64_t stride) {
    if (w->kind < INT8_TILES) {
        avx2_kernels.strip(w, strip, in, first, n, out, stride);
        return;
    }
#define CASE(kind, rest) \
    case AT_ONCE *(kind) + (rest): strip_times(kind, rest, w, strip, in, first, n, out, stride); break;
#define CASES(kind) CASE(kind, 0) CASE(kind, 1) CASE(kind, 2) CASE(kind, 3)
    switch (AT_ONCE * w->kind + n % AT_ONCE) { CASES(INT8_TILES) CASES(INT4_TILES) CASES(INT4_TILES_WITH_MINS) }
}

/* 16 rows of 16 numbers as columns. */
INLINE void turn(const float *rows, int64_t stride, int n, float *columns, int64_t columns_stride) {
    __m512 r[16], pairs[16];
    for (int i = 0; i < 16; i++) r[i] = i < n ? _mm512_loadu_ps(rows + i * stride) : _mm512_setzero_ps();
    for (int i = 0; i < 16; i += 2) {
        pairs[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) { /* then r[4i + k] has of four rows the columns k, k + 4, k + 8, k + 12 */
        for (int k = 0; k < 2; k++) {
            __m512d low = _mm512_castps_pd(pairs[i + k]), high = _mm512_castps_pd(pairs[i + k + 2]);
            r[i + 2 * k] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
            r[i + 2 * k + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
        }
    }
    for (int k = 0; k < 4; k++) {
        __m512 a = _mm512_shuffle_f32x4(r[k], r[k + 4], 0x44), b = _mm512_shuffle_f32x4(r[k + 8], r[k + 12], 0x44);
        __m512 c = _mm512_shuffle_f32x4(r[k], r[k + 4], 0xee), d = _mm512_shuffle_f32x4(r[k + 8], r[k + 12], 0xee);
        _mm512_storeu_ps(columns + k * columns_stride, _mm512_shuffle_f32x4(a, b, 0x88));
        _mm512_storeu_ps(columns + (k + 4) * columns_stride, _mm512_shuffle_f32x4(a, b, 0xdd));
        _mm512_storeu_ps(columns + (k + 8) * columns_stride, _mm512_shuffle_f32x4(c, d, 0x88));
        _mm512_storeu_ps(columns + (k + 12) * columns_stride, _mm512_shuffle_f32x4(c, d, 0xdd));
    }
}

/* n queries times 16 keys, which lie as columns. AVX2's `scores` adds up eight sums of a product, of the numbers
 * d, d + 8, …, in pairs of pairs; so do these. */
INLINE void sixteen_scores(int n, const float *const *q, int K, const float *columns, float *const *out, int s) {
    __m512 sums[3][8];
    for (int i = 0; i < n; i++)
        for (int l = 0; l < 8; l++) sums[i][l] = _mm512_setzero_ps();
    for (int d = 0; d < K; d += 8) {
        for (int l = 0; l < 8; l++) {
            __m512 keys = _mm512_loadu_ps(columns + (d + l) * CHUNK_SLOTS + s);
            KEEP_IN_REGISTER(keys);
            for (int i = 0; i < n; i++) sums[i][l] = _mm512_fmadd_ps(_mm512_set1_ps(q[i][d + l]), keys, sums[i][l]);
        }
    }
    for (int i = 0; i < n; i++) {
        for (int l = 0; l < 8; l += 2) sums[i][l] = _mm512_add_ps(sums[i][l], sums[i][l + 1]);
        for (int l = 0; l < 8; l += 4) sums[i][l] = _mm512_add_ps(sums[i][l], sums[i][l + 2]);
        _mm512_storeu_ps(out[i] + s, _mm512_add_ps(sums[i][0], sums[i][4]));
    }
}

static void scores_of_tokens(int tokens, const int *seen, const float *q, int64_t q_stride, int R, int K,
                             const float *k, int64_t stride, float *room, float *out) {
    enum { FEWEST = 6 }; /* queries that make up for the turning of the keys */
    int most = 0;
    for (int t = 0; t < tokens; t++) most = seen[t] > most ? seen[t] : most;
    if (K % 16 || tokens * R < FEWEST) {
        portable_kernels.scores_of_tokens(tokens, seen, q, q_stride, R, K, k, stride, room, out);
        return;
    }
    for (int s = 0; s < most; s += 16)
        for (int d = 0; d < K; d += 16)
            turn(k + s * stride + d, stride, most - s, room + (int64_t)d * CHUNK_SLOTS + s, CHUNK_SLOTS);
    const float *queries[3];
    float *rows[3];
    int n = 0, longest = 0;
    for (int i = 0; i < tokens * R; i++) {
        queries[n] = q + i / R * q_stride + i % R * K;
        rows[n++] = out + (int64_t)i * CHUNK_SLOTS;
        longest = seen[i / R] > longest ? seen[i / R] : longest;
        if (n < 3 && i < tokens * R - 1) continue;
        for (int s = 0; s < longest; s += 16) {
            if (n == 3) sixteen_scores(3, queries, K, room, rows, s);
            if (n == 2) sixteen_scores(2, queries, K, room, rows, s);
            if (n == 1) sixteen_scores(1, queries, K, room, rows, s);
        }
        n = longest = 0;
    }
    for (int t = 0; t < tokens; t++) { /* the last keys, fewer than eight, AVX2 takes one by one */
        int last = seen[t] % 8, s = seen[t] - last;
        if (last)
            kernels->scores(q + t * q_stride, R, K, k + s * stride, stride, last,
                            out + (int64_t)t * R * CHUNK_SLOTS + s);
    }
}

/* R heads, 16 · columns numbers of each: all sums stay in registers while the values go by. */
INLINE void mix_some(int R, int columns, const float *weights, const float *v, int64_t stride, int n, float *out,
                     int K) {
    __m512 sums[4][4];
    for (int r = 0; r < R; r++)
        for (int c = 0; c < columns; c++) sums[r][c] = _mm512_setzero_ps();
    for (int s = 0; s < n; s++) {
        __m512 values[4];
        for (int c = 0; c < columns; c++) {
            values[c] = _mm512_loadu_ps(v + s * stride + 16 * c);
            KEEP_IN_REGISTER(values[c]);
        }
        for (int r = 0; r < R; r++) {
            __m512 weight = _mm512_set1_ps(weights[r * CHUNK_SLOTS + s]);
            for (int c = 0; c < columns; c++) sums[r][c] = _mm512_fmadd_ps(weight, values[c], sums[r][c]);
        }
    }
    for (int r = 0; r < R; r++)
        for (int c = 0; c < columns; c++) _mm512_storeu_ps(out + r * K + 16 * c, sums[r][c]);
}

static void mix(const float *weights, int R, int K, const float *v, int64_t stride, int n, float *out) {
    if (K % 64) {
        avx2_kernels.mix(weights, R, K, v, stride, n, out);
        return;
    }
    for (int d = 0; d < K; d += 64) {
        int r = 0;
        for (; r + 4 <= R; r += 4) mix_some(4, 4, weights + r * CHUNK_SLOTS, v + d, stride, n, out + r * K + d, K);
        const float *rest = weights + r * CHUNK_SLOTS;
        if (R - r == 3) mix_some(3, 4, rest, v + d, stride, n, out + r * K + d, K);
        if (R - r == 2) mix_some(2, 4, rest, v + d, stride, n, out + r * K + d, K);
        if (R - r == 1) mix_some(1, 4, rest, v + d, stride, n, out + r * K + d, K);
    }
}

Kernels avx512_kernels;

void prepare_avx512(void) { /* all else is AVX2's */
    avx512_kernels = avx2_kernels;
    avx512_kernels.strip = strip_of;
    avx512_kernels.scores_of_tokens = scores_of_tokens;
    avx512_kernels.mix = mix;
}
#else
typedef int nothing_here;
#endif
