/* Products with tiles for x86-64 with AVX-512 and VNNI: one instruction multiplies 4 columns of a whole strip. */
#include "native.h"
#ifdef HAS_X86
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")
#include <immintrin.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

/* Of one pass over a strip; int8 goes by so fast then that the processor's own prefetching does better. */
enum { PREFETCH_BYTES = 6144 };
enum { AT_ONCE = 4 }; /* inputs of a pass: as many as their sums fit into 32 registers */

/* The instruction wants unsigned × signed. An int8 weight plus 128 is unsigned, so the sum of 128 · x is taken off. */
INLINE void tiles_times(int kind, int n, const Weight *w, int strip, const Input *in, int first, float (*out)[STRIP]) {
    const __m512i flip = _mm512_set1_epi8((char)0x80), low_halves = _mm512_set1_epi8(15);
    int quads = kind == INT8_TILES ? 8 : 4;
    int above = kind == INT8_TILES ? 128 : kind == INT4_TILES ? 8 : 0;
    /* Many inputs go over the strip in several passes: meanwhile the next strip is fetched, a part of each tile in
     * every pass. */
    int passes = (in->n + AT_ONCE - 1) / AT_ONCE, pass = first / AT_ONCE;
    int64_t ahead = passes > 1 ? (int64_t)w->groups * quads * 64 : PREFETCH_BYTES;
    int from = passes > 1 ? quads * pass / passes : 0;
    int to = passes > 1 ? quads * (pass + 1) / passes : kind != INT8_TILES ? quads : 0;
    __m512 sums[MAX_INPUTS];
    for (int i = 0; i < n; i++) sums[i] = _mm512_setzero_ps();
    for (int g = 0; g < w->groups; g++) {
        int64_t tile = (int64_t)strip * w->groups + g;
        const uint8_t *values = (const uint8_t *)w->values + tile * quads * 64;
        __m512i whole[MAX_INPUTS][2]; /* of the high and of the low bytes */
        const int8_t *x[MAX_INPUTS][2];
        for (int i = 0; i < n; i++) {
            whole[i][0] = _mm512_setzero_si512();
            whole[i][1] = _mm512_set1_epi32(-above * in->sums[(int64_t)(first + i) * w->groups + g]);
            int64_t at = (int64_t)(first + i) * in->columns + g * GROUP;
            x[i][0] = in->high + at;
            x[i][1] = in->low + at;
        }
        for (int line = from; line < to; line++) _mm_prefetch((const char *)values + 64 * line + ahead, _MM_HINT_T0);
        for (int quad = 0; quad < quads; quad++) {
            __m512i part = _mm512_loadu_si512(values + 64 * quad);
            __m512i low = kind == INT8_TILES ? _mm512_xor_si512(part, flip) : _mm512_and_si512(part, low_halves);
            __m512i high = _mm512_and_si512(_mm512_srli_epi16(part, 4), low_halves);
            for (int i = 0; i < n; i++) {
                for (int k = 0; k < 2; k++) {
                    int32_t four;
                    memcpy(&four, x[i][k] + 4 * quad, 4);
                    whole[i][k] = _mm512_dpbusd_epi32(whole[i][k], low, _mm512_set1_epi32(four));
                    if (kind != INT8_TILES) {
                        memcpy(&four, x[i][k] + 4 * quad + 16, 4);
                        whole[i][k] = _mm512_dpbusd_epi32(whole[i][k], high, _mm512_set1_epi32(four));
                    }
                }
            }
        }
        __m512 scale =
            _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)((const uint16_t *)w->scales + tile * STRIP)));
        for (int i = 0; i < n; i++) {
            __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(in->scales[(int64_t)(first + i) * w->groups + g]));
            __m512i sum = _mm512_add_epi32(_mm512_slli_epi32(whole[i][0], 8), whole[i][1]);
            sums[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), both, sums[i]);
        }
        if (kind == INT4_TILES_WITH_MINS) {
            __m512 least =
                _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)((const uint16_t *)w->mins + tile * STRIP)));
            for (int i = 0; i < n; i++) {
                int64_t at = (int64_t)(first + i) * w->groups + g;
                sums[i] = _mm512_fmadd_ps(least, _mm512_set1_ps(in->scales[at] * (float)in->sums[at]), sums[i]);
            }
        }
    }
    for (int i = 0; i < n; i++) _mm512_storeu_ps(out[i], sums[i]);
}

static void strip_of(const Weight *w, int strip, const Input *in, int first, int n, float (*out)[STRIP]) {
    if (w->kind < INT8_TILES) {
        avx2_kernels.strip(w, strip, in, first, n, out);
        return;
    }
    for (; n > 0; first += AT_ONCE, out += AT_ONCE, n -= AT_ONCE) {
#define CASE(kind, n) \
    case AT_ONCE *(kind) + (n) - 1: tiles_times(kind, n, w, strip, in, first, out); break;
#define CASES(kind) CASE(kind, 1) CASE(kind, 2) CASE(kind, 3) CASE(kind, 4)
        switch (AT_ONCE * w->kind + (n < AT_ONCE ? n : AT_ONCE) - 1) {
            CASES(INT8_TILES) CASES(INT4_TILES) CASES(INT4_TILES_WITH_MINS)
        }
    }
}

Kernels avx512_kernels;

void prepare_avx512(void) { /* all else is AVX2's */
    avx512_kernels = avx2_kernels;
    avx512_kernels.strip = strip_of;
}
#else
typedef int nothing_here;
#endif
