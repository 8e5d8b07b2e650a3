/* The kernels for x86-64 with AVX2: 8 floats or 32 bytes at once. */
#include "native.h"
#ifdef HAS_X86
#pragma GCC target("avx2,fma,f16c")
#include <immintrin.h>
#include <math.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

/* With so much work on each tile, the processor's own prefetching stays too near. */
enum { PREFETCH_BYTES = 3072 };

INLINE float sum_of(__m256 x) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

/* Eight values of a row as floats. */
INLINE __m256 eight(int kind, const char *at) {
    switch (kind) {
    case F32: return _mm256_loadu_ps((const float *)at);
    case BF16: {
        __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)at));
        return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
    }
    case F16: return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)at));
    default: return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)at)));
    }
}

/* One row times n inputs, n and kind known to the compiler: it unrolls all loops over them. */
INLINE void row_times(int kind, int n, const Weight *w, int64_t row, const Input *in, int first, float *out) {
    static const int sizes[] = {4, 2, 2, 1};
    const int CHAINS = 4; /* independent sums for one input, or each addition would wait for the one before */
    int size = sizes[kind], chains = n == 1 ? CHAINS : 1, width = w->columns / w->groups;
    const char *values = (const char *)w->values + row * w->columns * size;
    const float *x[MAX_INPUTS];
    for (int i = 0; i < n; i++) {
        x[i] = in->floats + (int64_t)(first + i) * in->columns;
        out[i] = 0;
    }
    for (int g = 0; g < w->groups; g++) {
        __m256 sums[MAX_INPUTS];
        for (int i = 0; i < n * chains; i++) sums[i] = _mm256_setzero_ps();
        int c = g * width, end = c + width;
        for (; c + 8 * chains <= end; c += 8 * chains) {
            for (int k = 0; k < chains; k++) {
                __m256 part = eight(kind, values + (int64_t)(c + 8 * k) * size);
                for (int i = 0; i < n; i++)
                    sums[i + k] = _mm256_fmadd_ps(part, _mm256_loadu_ps(x[i] + c + 8 * k), sums[i + k]);
            }
        }
        for (; c + 8 <= end; c += 8) {
            __m256 part = eight(kind, values + (int64_t)c * size);
            for (int i = 0; i < n; i++) sums[i] = _mm256_fmadd_ps(part, _mm256_loadu_ps(x[i] + c), sums[i]);
        }
        float scale = kind == INT8_ROWS ? ((const float *)w->scales)[row * w->groups + g] : 1;
        if (n == 1) sums[0] = _mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3]));
        for (int i = 0; i < n; i++) {
            float sum = sum_of(sums[i]);
            for (int rest = c; rest < end; rest++) {
                const char *at = values + (int64_t)rest * size;
                float value = kind == F32    ? *(const float *)at
                              : kind == BF16 ? from_bf16(*(const uint16_t *)at)
                              : kind == F16  ? from_f16(*(const uint16_t *)at)
                                             : (float)*(const int8_t *)at;
                sum += value * x[i][rest];
            }
            out[i] += scale * sum;
        }
    }
}

/* A strip of a weight in tiles. Bytes are multiplied in pairs as unsigned × signed, so the sign moves to the input. */
INLINE void tiles_times(int kind, int n, const Weight *w, int strip, const Input *in, int first, float *out,
                        int64_t stride) {
    const __m256i ones = _mm256_set1_epi16(1), low_halves = _mm256_set1_epi8(15);
    int bytes = kind == INT8_TILES ? STRIP * GROUP : STRIP * GROUP / 2;
    __m256 sums[MAX_INPUTS][2];
    for (int i = 0; i < n; i++) sums[i][0] = sums[i][1] = _mm256_setzero_ps();
    for (int g = 0; g < w->groups; g++) {
        int64_t tile = (int64_t)strip * w->groups + g;
        const uint8_t *values = (const uint8_t *)w->values + tile * bytes;
        const uint16_t *scales = (const uint16_t *)w->scales + tile * STRIP;
        __m256i whole[MAX_INPUTS][2][2]; /* of each input, half of the rows, and high or low bytes */
        const int8_t *x[MAX_INPUTS][2];
        for (int i = 0; i < n; i++) {
            for (int k = 0; k < 4; k++) whole[i][k / 2][k % 2] = _mm256_setzero_si256();
            x[i][0] = in->bytes + ((int64_t)(first + i) * w->groups + g) * 2 * GROUP;
            x[i][1] = x[i][0] + GROUP;
        }
        if (kind == INT8_TILES) {
            for (int quad = 0; quad < 8; quad++) {
                _mm_prefetch((const char *)values + 64 * quad + PREFETCH_BYTES, _MM_HINT_T0);
                for (int half = 0; half < 2; half++) {
                    __m256i part = _mm256_loadu_si256((const __m256i *)(values + 64 * quad + 32 * half));
                    __m256i size = _mm256_abs_epi8(part);
                    for (int i = 0; i < n; i++) {
                        for (int k = 0; k < 2; k++) {
                            int32_t four;
                            memcpy(&four, x[i][k] + 4 * quad, 4);
                            __m256i pairs = _mm256_maddubs_epi16(size, _mm256_sign_epi8(_mm256_set1_epi32(four), part));
                            whole[i][half][k] = _mm256_add_epi32(whole[i][half][k], _mm256_madd_epi16(pairs, ones));
                        }
                    }
                }
            }
        } else { /* 8 · 2 · 15 · 127 fits into 16 bits: they're widened once for the whole group */
            for (int quad = 0; quad < 4; quad++) {
                _mm_prefetch((const char *)values + 64 * quad + PREFETCH_BYTES, _MM_HINT_T0);
                for (int half = 0; half < 2; half++) {
                    __m256i both = _mm256_loadu_si256((const __m256i *)(values + 64 * quad + 32 * half));
                    __m256i low = _mm256_and_si256(both, low_halves);
                    __m256i high = _mm256_and_si256(_mm256_srli_epi16(both, 4), low_halves);
                    for (int i = 0; i < n; i++) {
                        for (int k = 0; k < 2; k++) {
                            int32_t four, other;
                            memcpy(&four, x[i][k] + 4 * quad, 4);
                            memcpy(&other, x[i][k] + 4 * quad + 16, 4);
                            __m256i pairs = _mm256_add_epi16(_mm256_maddubs_epi16(low, _mm256_set1_epi32(four)),
                                                             _mm256_maddubs_epi16(high, _mm256_set1_epi32(other)));
                            whole[i][half][k] = _mm256_add_epi16(whole[i][half][k], pairs);
                        }
                    }
                }
            }
            for (int i = 0; i < n; i++)
                for (int k = 0; k < 4; k++) whole[i][k / 2][k % 2] = _mm256_madd_epi16(whole[i][k / 2][k % 2], ones);
        }
        for (int half = 0; half < 2; half++) {
            __m256 scale = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(scales + 8 * half)));
            for (int i = 0; i < n; i++) {
                int64_t at = (int64_t)(first + i) * w->groups + g;
                __m256i sum = _mm256_add_epi32(_mm256_slli_epi32(whole[i][half][0], 8), whole[i][half][1]);
                if (kind == INT4_TILES) sum = _mm256_sub_epi32(sum, _mm256_set1_epi32(8 * in->sums[at]));
                __m256 both = _mm256_mul_ps(scale, _mm256_set1_ps(in->scales[at]));
                sums[i][half] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), both, sums[i][half]);
            }
            if (kind == INT4_TILES_WITH_MINS) {
                const uint16_t *mins = (const uint16_t *)w->mins + tile * STRIP + 8 * half;
                __m256 least = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)mins));
                for (int i = 0; i < n; i++) {
                    int64_t at = (int64_t)(first + i) * w->groups + g;
                    sums[i][half] = _mm256_fmadd_ps(least, _mm256_set1_ps(in->totals[at]), sums[i][half]);
                }
            }
        }
    }
    for (int i = 0; i < n; i++)
        for (int half = 0; half < 2; half++) _mm256_storeu_ps(out + i * stride + 8 * half, sums[i][half]);
}

static void times(int kind, int n, const Weight *w, int strip, const Input *in, int first, float *out, int64_t stride);

static void strip_of(const Weight *w, int strip, const Input *in, int first, int n, float *out, int64_t stride) {
    int at_once = w->kind >= INT8_TILES ? 2 : 4; /* as many as their sums fit into 16 registers */
    while (n > 0) {
        int some = n < at_once ? n : at_once;
        times(w->kind, some, w, strip, in, first, out, stride);
        first += some, out += some * stride, n -= some;
    }
}

INLINE void strip_times(int kind, int n, const Weight *w, int strip, const Input *in, int first, float *out,
                        int64_t stride) {
    if (kind >= INT8_TILES) {
        tiles_times(kind, n, w, strip, in, first, out, stride);
        return;
    }
    int rows = rows_of_strip(w, strip);
    for (int r = 0; r < rows; r++) {
        float row[MAX_INPUTS];
        row_times(kind, n, w, (int64_t)STRIP * strip + r, in, first, row);
        for (int i = 0; i < n; i++) out[i * stride + r] = row[i];
    }
}

/* `strip_times` once for each kind and number of inputs, each with loops of its own. */
static void times(int kind, int n, const Weight *w, int strip, const Input *in, int first, float *out, int64_t stride) {
#define CASE(kind, n) \
    case 4 * (kind) + (n) - 1: strip_times(kind, n, w, strip, in, first, out, stride); break;
#define CASES(kind) CASE(kind, 1) CASE(kind, 2) CASE(kind, 3) CASE(kind, 4)
    switch (4 * kind + n - 1) {
        CASES(F32)
        CASES(BF16) CASES(F16) CASES(INT8_ROWS) CASES(INT8_TILES) CASES(INT4_TILES) CASES(INT4_TILES_WITH_MINS)
    }
}

static void round_groups(const float *x, int columns, int8_t *bytes, float *scales, int32_t *sums, float *totals) {
    const __m256 no_sign = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    /* packs works in each half by itself, so the fours of bytes come out in another order */
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    for (int g = 0; g < columns / GROUP; g++, x += GROUP, bytes += 2 * GROUP) {
        int8_t *high = bytes, *low = bytes + GROUP;
        __m256 parts[4], max = _mm256_setzero_ps(), zero_or_nan = _mm256_setzero_ps();
        for (int k = 0; k < 4; k++) {
            parts[k] = _mm256_loadu_ps(x + 8 * k);
            max = _mm256_max_ps(_mm256_and_ps(parts[k], no_sign), max);
            zero_or_nan = _mm256_fmadd_ps(parts[k], _mm256_setzero_ps(), zero_or_nan);
        }
        __m128 half = _mm_max_ps(_mm256_castps256_ps128(max), _mm256_extractf128_ps(max, 1));
        half = _mm_max_ps(half, _mm_movehl_ps(half, half));
        float largest = _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
        __m256 inverse = _mm256_set1_ps(largest > 1e-30f ? MAX_ROUNDED / largest : 0);
        __m256i highs[4], lows[4], all = _mm256_setzero_si256();
        for (int k = 0; k < 4; k++) {
            __m256i rounded = _mm256_cvtps_epi32(_mm256_mul_ps(parts[k], inverse));
            highs[k] = _mm256_srai_epi32(_mm256_add_epi32(rounded, _mm256_set1_epi32(128)), 8);
            lows[k] = _mm256_sub_epi32(rounded, _mm256_slli_epi32(highs[k], 8));
            lows[k] = _mm256_max_epi32(lows[k], _mm256_set1_epi32(-127));
            all = _mm256_add_epi32(all, _mm256_add_epi32(_mm256_slli_epi32(highs[k], 8), lows[k]));
        }
        __m256i bytes[2] = {
            _mm256_packs_epi16(_mm256_packs_epi32(highs[0], highs[1]), _mm256_packs_epi32(highs[2], highs[3])),
            _mm256_packs_epi16(_mm256_packs_epi32(lows[0], lows[1]), _mm256_packs_epi32(lows[2], lows[3]))};
        _mm256_storeu_si256((__m256i *)high, _mm256_permutevar8x32_epi32(bytes[0], order));
        _mm256_storeu_si256((__m256i *)low, _mm256_permutevar8x32_epi32(bytes[1], order));
        __m128i four = _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
        four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
        float nan = sum_of(zero_or_nan); /* then the scale says it all, and the rounded values mean nothing */
        sums[g] = nan == 0 ? _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1))) : 0;
        scales[g] = largest / MAX_ROUNDED + nan;
        totals[g] = scales[g] * (float)sums[g];
    }
}

static float dot(const float *a, const float *b, int n) {
    __m256 one = _mm256_setzero_ps(), two = one;
    int i = 0;
    for (; i + 16 <= n; i += 16) {
        one = _mm256_fmadd_ps(_mm256_loadu_ps(a + i), _mm256_loadu_ps(b + i), one);
        two = _mm256_fmadd_ps(_mm256_loadu_ps(a + i + 8), _mm256_loadu_ps(b + i + 8), two);
    }
    float sum = sum_of(_mm256_add_ps(one, two));
    for (; i < n; i++) sum += a[i] * b[i];
    return sum;
}

/* Eight keys at a time, so that their eight sums over a register each become one register of sums. */
static void scores_of(const float *q, int R, int K, const float *k, int64_t stride, int n, float *out) {
    int s = 0;
    for (; s + 8 <= n && K % 8 == 0; s += 8) {
        for (int r = 0; r < R; r++) {
            __m256 sums[8];
            for (int i = 0; i < 8; i++) sums[i] = _mm256_setzero_ps();
            for (int d = 0; d < K; d += 8) {
                __m256 part = _mm256_loadu_ps(q + r * K + d);
                for (int i = 0; i < 8; i++)
                    sums[i] = _mm256_fmadd_ps(part, _mm256_loadu_ps(k + (s + i) * stride + d), sums[i]);
            }
            __m256 fours[2];
            for (int i = 0; i < 2; i++)
                fours[i] = _mm256_hadd_ps(_mm256_hadd_ps(sums[4 * i], sums[4 * i + 1]),
                                          _mm256_hadd_ps(sums[4 * i + 2], sums[4 * i + 3]));
            __m256 low = _mm256_permute2f128_ps(fours[0], fours[1], 0x20);
            __m256 high = _mm256_permute2f128_ps(fours[0], fours[1], 0x31);
            _mm256_storeu_ps(out + r * CHUNK_SLOTS + s, _mm256_add_ps(low, high));
        }
    }
    for (; s < n; s++)
        for (int r = 0; r < R; r++) out[r * CHUNK_SLOTS + s] = dot(q + r * K, k + s * stride, K);
}

static void scores_of_tokens(int tokens, const int *seen, const float *q, int64_t q_stride, int R, int K,
                             const float *k, int64_t stride, float *room, float *out) {
    portable_kernels.scores_of_tokens(tokens, seen, q, q_stride, R, K, k, stride, room, out);
}

/* R heads, 16 numbers of each: all sums stay in registers while the values go by. */
INLINE void mix_some(int R, const float *weights, const float *v, int64_t stride, int n, float *out, int K) {
    __m256 sums[4][2];
    for (int r = 0; r < R; r++) sums[r][0] = sums[r][1] = _mm256_setzero_ps();
    for (int s = 0; s < n; s++) {
        __m256 low = _mm256_loadu_ps(v + s * stride), high = _mm256_loadu_ps(v + s * stride + 8);
        for (int r = 0; r < R; r++) {
            __m256 weight = _mm256_set1_ps(weights[r * CHUNK_SLOTS + s]);
            sums[r][0] = _mm256_fmadd_ps(weight, low, sums[r][0]);
            sums[r][1] = _mm256_fmadd_ps(weight, high, sums[r][1]);
        }
    }
    for (int r = 0; r < R; r++) {
        _mm256_storeu_ps(out + r * K, sums[r][0]);
        _mm256_storeu_ps(out + r * K + 8, sums[r][1]);
    }
}

static void mix(const float *weights, int R, int K, const float *v, int64_t stride, int n, float *out) {
    if (K % 16) {
        portable_kernels.mix(weights, R, K, v, stride, n, out);
        return;
    }
    for (int d = 0; d < K; d += 16) {
        int r = 0;
        for (; r + 4 <= R; r += 4) mix_some(4, weights + r * CHUNK_SLOTS, v + d, stride, n, out + r * K + d, K);
        const float *rest = weights + r * CHUNK_SLOTS;
        if (R - r == 3) mix_some(3, rest, v + d, stride, n, out + r * K + d, K);
        if (R - r == 2) mix_some(2, rest, v + d, stride, n, out + r * K + d, K);
        if (R - r == 1) mix_some(1, rest, v + d, stride, n, out + r * K + d, K);
    }
}

/* e^x = 2^n · e^r with |r| <= ln 2 / 2, whose power series is done after seven terms: within 2 units of the last place
 * for x from −87 to 0, and 0 below. */
INLINE __m256 exp_of(__m256 x) {
    __m256 n =
        _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x); /* ln 2 in two parts, the first of few digits */
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
    static const float terms[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1, 1};
    __m256 sum = _mm256_set1_ps(1.0f / 5040);
    for (int k = 0; k < 7; k++) sum = _mm256_fmadd_ps(sum, r, _mm256_set1_ps(terms[k]));
    __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    __m256 enough = _mm256_cmp_ps(x, _mm256_set1_ps(-87), _CMP_NLT_UQ); /* true for NaN, which goes on as NaN */
    return _mm256_and_ps(_mm256_mul_ps(sum, _mm256_castsi256_ps(power)), enough);
}

static float largest(const float *x, int n) {
    float max = x[0];
    int i = 0;
    if (n >= 8) {
        __m256 eight_of = _mm256_loadu_ps(x);
        for (i = 8; i + 8 <= n; i += 8) eight_of = _mm256_max_ps(_mm256_loadu_ps(x + i), eight_of);
        __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight_of), _mm256_extractf128_ps(eight_of, 1));
        four = _mm_max_ps(four, _mm_movehl_ps(four, four));
        max = _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
    }
    for (; i < n; i++) max = x[i] > max ? x[i] : max;
    return max;
}

static float exp_minus(float *x, float max, int n) {
    __m256 sums = _mm256_setzero_ps();
    int i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256 part = exp_of(_mm256_sub_ps(_mm256_loadu_ps(x + i), _mm256_set1_ps(max)));
        sums = _mm256_add_ps(sums, part);
        _mm256_storeu_ps(x + i, part);
    }
    float sum = sum_of(sums);
    for (; i < n; i++) sum += x[i] = expf(x[i] - max);
    return sum;
}

static void swiglu(const float *gates, const float *ups, int n, float *out) {
    const __m256 one = _mm256_set1_ps(1), least = _mm256_set1_ps(-80), no_gate = _mm256_setzero_ps();
    int i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256 gate = _mm256_loadu_ps(gates + i);
        __m256 enough = _mm256_cmp_ps(gate, least, _CMP_GT_OQ); /* e^80 is a float */
        __m256 minus = _mm256_sub_ps(no_gate, _mm256_blendv_ps(least, gate, enough));
        __m256 part = _mm256_div_ps(gate, _mm256_add_ps(one, exp_of(minus)));
        _mm256_storeu_ps(out + i, _mm256_mul_ps(part, _mm256_loadu_ps(ups + i)));
    }
    if (i < n) portable_kernels.swiglu(gates + i, ups + i, n - i, out + i);
}

/* Eight numbers of a cached vector, `at` within a group, before they are scaled. */
INLINE __m256 eight_cached(int kind, const CachedVectors *cached, int64_t group_at, int at) {
    const char *values = cached->values;
    if (kind == CACHE_F32) return eight(F32, values + 4 * (group_at + at));
    if (kind == CACHE_BF16) return eight(BF16, values + 2 * (group_at + at));
    if (kind == CACHE_INT8) return eight(INT8_ROWS, values + group_at + at);
    int half = cached->group / 2, above = at >= half; /* the second half of a group lies above the first */
    __m128i both = _mm_loadl_epi64((const __m128i *)(values + group_at / 2 + at - above * half));
    __m128i four_bits = _mm_and_si128(above ? _mm_srli_epi16(both, 4) : both, _mm_set1_epi8(15));
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_cvtepi8_epi32(four_bits), _mm256_set1_epi32(8)));
}

INLINE void widen_all(int kind, const CachedVectors *cached, int64_t first, int step, int n, int head_dim, float *out) {
    int scaled = kind == CACHE_INT8 || kind == CACHE_INT4, group = scaled ? cached->group : head_dim;
    const float *scales = cached->scales + (scaled ? first * (head_dim / group) : 0);
    for (int s = 0; s < n; s++, first += step, out += head_dim) {
        for (int i = 0; i < head_dim; i += group) {
            __m256 scale = _mm256_set1_ps(scaled ? scales[(int64_t)s * step * (head_dim / group) + i / group] : 1);
            for (int k = 0; k < group; k += 8)
                _mm256_storeu_ps(out + i + k,
                                 _mm256_mul_ps(eight_cached(kind, cached, first * head_dim + i, k), scale));
        }
    }
}

static void widen(const CachedVectors *cached, int64_t first, int step, int n, int head_dim, float *out) {
    if (head_dim % 16 || (cached->group && cached->group % 16)) {
        portable_kernels.widen(cached, first, step, n, head_dim, out);
        return;
    }
    switch (cached->kind) {
    case CACHE_F32: widen_all(CACHE_F32, cached, first, step, n, head_dim, out); break;
    case CACHE_BF16: widen_all(CACHE_BF16, cached, first, step, n, head_dim, out); break;
    case CACHE_INT8: widen_all(CACHE_INT8, cached, first, step, n, head_dim, out); break;
    default: widen_all(CACHE_INT4, cached, first, step, n, head_dim, out);
    }
}

const Kernels avx2_kernels = {
    .strip = strip_of,
    .round = round_groups,
    .dot = dot,
    .scores = scores_of,
    .mix = mix,
    .scores_of_tokens = scores_of_tokens,
    .largest = largest,
    .exp_minus = exp_minus,
    .swiglu = swiglu,
    .widen = widen,
};
#else
typedef int nothing_here;
#endif
