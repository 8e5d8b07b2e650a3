/* Products with tiles for x86-64 with AVX-512 and VNNI: one instruction multiplies 4 columns of a whole strip. */
#include "native.h"
#ifdef HAS_X86
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")
#include <immintrin.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

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

Kernels avx512_kernels;

void prepare_avx512(void) { /* all else is AVX2's */
    avx512_kernels = avx2_kernels;
    avx512_kernels.strip = strip_of;
}
#else
typedef int nothing_here;
#endif
