/* The kernels in plain C: what the faster ones must equal. Where there are none of these, torch computes. */
#include "native.h"

#include <math.h>
#include <string.h>

static void strip_of_rows(const Weight *w, int strip, const Input *in, int first, int n, float *out, int64_t stride) {
    int width = w->columns / w->groups, rows = rows_of_strip(w, strip);
    for (int r = 0; r < rows; r++) {
        int64_t row = (int64_t)STRIP * strip + r;
        for (int g = 0; g < w->groups; g++) {
            float scale = w->kind == INT8_ROWS ? ((const float *)w->scales)[row * w->groups + g] : 1;
            for (int i = 0; i < n; i++) {
                const float *x = in->floats + (int64_t)(first + i) * in->columns;
                float sum = 0;
                for (int c = g * width; c < (g + 1) * width; c++) sum += number_at(w, row * w->columns + c) * x[c];
                out[i * stride + r] += scale * sum;
            }
        }
    }
}

/* A tile is 16 rows × 32 columns. int8: eight times, for 4 columns each, 16 rows of 4 bytes. int4: four times that, a
 * byte holding column c below and column c + 16 above. */
static void strip_of_tiles(const Weight *w, int strip, const Input *in, int first, int n, float *out, int64_t stride) {
    int bits = w->kind == INT8_TILES ? 8 : 4, middle = w->kind == INT4_TILES ? 8 : 0;
    for (int g = 0; g < w->groups; g++) {
        int64_t tile = (int64_t)strip * w->groups + g;
        const uint8_t *values = (const uint8_t *)w->values + tile * STRIP * GROUP * bits / 8;
        for (int i = 0; i < n; i++) {
            int64_t at = (int64_t)(first + i) * w->groups + g;
            const int8_t *high = in->bytes + at * 2 * GROUP, *low = high + GROUP;
            float *to = out + i * stride;
            for (int r = 0; r < STRIP; r++) {
                int32_t sum = -middle * in->sums[at];
                for (int c = 0; c < GROUP; c++) {
                    int quad = (bits == 8 ? c : c % 16) / 4;
                    uint8_t byte = values[(quad * STRIP + r) * 4 + c % 4];
                    int32_t x = 256 * high[c] + low[c];
                    sum += x * (bits == 8 ? (int8_t)byte : c < 16 ? byte & 15 : byte >> 4);
                }
                float scale = from_f16(((const uint16_t *)w->scales)[tile * STRIP + r]);
                to[r] += scale * in->scales[at] * (float)sum;
                if (w->kind == INT4_TILES_WITH_MINS)
                    to[r] +=
                        from_f16(((const uint16_t *)w->mins)[tile * STRIP + r]) * in->scales[at] * (float)in->sums[at];
            }
        }
    }
}

static void strip_of(const Weight *w, int strip, const Input *in, int first, int n, float *out, int64_t stride) {
    for (int i = 0; i < n; i++) memset(out + i * stride, 0, sizeof(float) * rows_of_strip(w, strip));
    (w->kind < INT8_TILES ? strip_of_rows : strip_of_tiles)(w, strip, in, first, n, out, stride);
}

static void round_groups(const float *x, int columns, int8_t *bytes, float *scales, int32_t *sums, float *totals) {
    for (int g = 0; g < columns / GROUP; g++, x += GROUP, bytes += 2 * GROUP) {
        int8_t *high = bytes, *low = bytes + GROUP;
        float max = 0, zero_or_nan = 0; /* 0 · x is NaN where x is no number: it must come out again */
        for (int c = 0; c < GROUP; c++) {
            max = fabsf(x[c]) > max ? fabsf(x[c]) : max;
            zero_or_nan += 0 * x[c];
        }
        float inverse = max > 1e-30f ? MAX_ROUNDED / max : 0; /* whose inverse is still a float */
        sums[g] = 0;
        for (int c = 0; c < GROUP; c++) {
            int32_t rounded = (int32_t)lrintf(x[c] * inverse);
            high[c] = (int8_t)((rounded + 128) >> 8);
            int32_t rest = rounded - 256 * high[c];
            low[c] = (int8_t)(rest < -127 ? -127 : rest);
            sums[g] += 256 * high[c] + low[c];
        }
        scales[g] = max / MAX_ROUNDED + zero_or_nan;
        totals[g] = scales[g] * (float)sums[g];
    }
}

static float dot(const float *a, const float *b, int n) {
    float sum = 0;
    for (int i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

static void scores_of(const float *q, int R, int K, const float *k, int64_t stride, int n, float *out) {
    for (int r = 0; r < R; r++)
        for (int s = 0; s < n; s++) out[r * CHUNK_SLOTS + s] = dot(q + r * K, k + s * stride, K);
}

static void mix(const float *weights, int R, int K, const float *v, int64_t stride, int n, float *out) {
    memset(out, 0, sizeof(float) * R * K);
    for (int r = 0; r < R; r++)
        for (int s = 0; s < n; s++)
            for (int d = 0; d < K; d++) out[r * K + d] += weights[r * CHUNK_SLOTS + s] * v[s * stride + d];
}

static float largest(const float *x, int n) {
    float max = x[0];
    for (int i = 1; i < n; i++) max = x[i] > max ? x[i] : max;
    return max;
}

static float exp_minus(float *x, float max, int n) {
    float sum = 0;
    for (int i = 0; i < n; i++) sum += x[i] = expf(x[i] - max);
    return sum;
}

static void scores_of_tokens(int tokens, const int *seen, const float *q, int64_t q_stride, int R, int K,
                             const float *k, int64_t stride, float *room, float *out) {
    (void)room;
    for (int t = 0; t < tokens; t++)
        kernels->scores(q + t * q_stride, R, K, k, stride, seen[t], out + (int64_t)t * R * CHUNK_SLOTS);
}

static void swiglu(const float *gates, const float *ups, int n, float *out) {
    for (int i = 0; i < n; i++) {
        float minus = gates[i] > -80 ? -gates[i] : 80; /* e^80 is a float */
        out[i] = gates[i] / (1 + expf(minus)) * ups[i];
    }
}

static void widen_one(const CachedVectors *cached, int64_t vector, int head_dim, float *out) {
    int64_t at = vector * head_dim;
    const float *scales = cached->scales + (cached->scales ? vector * (head_dim / cached->group) : 0);
    for (int i = 0; i < head_dim; i++) {
        switch (cached->kind) {
        case CACHE_F32: out[i] = ((const float *)cached->values)[at + i]; break;
        case CACHE_BF16: out[i] = from_bf16(((const uint16_t *)cached->values)[at + i]); break;
        case CACHE_INT8: out[i] = ((const int8_t *)cached->values)[at + i] * scales[i / cached->group]; break;
        default: { /* of a group the first half lies below, the second above */
            int half = cached->group / 2, in_group = i % cached->group;
            uint8_t byte = ((const uint8_t *)cached->values)[(at + i - in_group) / 2 + in_group % half];
            out[i] = ((in_group < half ? byte & 15 : byte >> 4) - 8) * scales[i / cached->group];
        }
        }
    }
}

static void widen(const CachedVectors *cached, int64_t first, int step, int n, int head_dim, float *out) {
    for (int s = 0; s < n; s++) widen_one(cached, first + (int64_t)s * step, head_dim, out + s * head_dim);
}

const Kernels portable_kernels = {
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
