/* The next token from a row of logits: temperature, top-k, top-p, min-p and a draw, in a few passes over the
 * vocabulary.
 *
 * What `inference.sample` does with filters, in the same order and to the same token. Nothing is sorted but the few
 * numbers of one bin: all are counted into bins by their distance from the largest, and a bin tells where the cut is.
 */
#include "native.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { BINS = 1024, LANES = 16 };

/* What is kept: numbers above `least`, and of those equal to it the first `equals`. */
typedef struct {
    float least;
    int equals;
} Cut;

typedef struct {
    float x;
    int id;
} Candidate;

/* The logits on their way: x at the temperature, e^(x − max), the bin of each; room for the candidates of one bin. */
typedef struct {
    int n;
    float max;
    float *x, *weights;
    uint16_t *bin;
    Candidate *candidates;
} Row;

static int larger_first(const void *a, const void *b) {
    const Candidate *one = a, *other = b;
    if (one->x != other->x) return one->x < other->x ? 1 : -1;
    return one->id - other->id;
}

static void put_into_bins(Row *r) {
    enum { MAX_DISTANCE = 32 }; /* e^-32 is nothing beside 1 */
    float lanes[LANES], distance = 0;
    for (int k = 0; k < LANES; k++) lanes[k] = r->max;
    int i = 0;
    for (; i + LANES <= r->n; i += LANES)
        for (int k = 0; k < LANES; k++) lanes[k] = r->x[i + k] < lanes[k] ? r->x[i + k] : lanes[k];
    for (; i < r->n; i++) lanes[0] = r->x[i] < lanes[0] ? r->x[i] : lanes[0];
    for (int k = 0; k < LANES; k++) distance = r->max - lanes[k] > distance ? r->max - lanes[k] : distance;
    distance = distance < MAX_DISTANCE ? distance : MAX_DISTANCE;
    float bins_per_x = distance > 0 ? (BINS - 1) / distance : 0;
    for (i = 0; i < r->n; i++) {
        float at = (r->max - r->x[i]) * bins_per_x;
        r->bin[i] = (uint16_t)(int)(at < BINS - 1 ? at : BINS - 1);
    }
}

/* The candidates of a bin, the largest first and of equals the one with the smaller id. */
static int sorted_bin(Row *r, int bin) {
    int found = 0, differ = 0;
    for (int begin = 0; begin < r->n; begin += LANES) {
        int end = begin + LANES < r->n ? begin + LANES : r->n;
        uint16_t off[LANES], any = 0; /* most blocks hold none */
        if (end - begin == LANES) {
            for (int k = 0; k < LANES; k++) off[k] = r->bin[begin + k] == bin;
            for (int k = 0; k < LANES; k++) any |= off[k];
            if (!any) continue;
        }
        for (int i = begin; i < end; i++) {
            if (r->bin[i] != bin) continue;
            differ |= found && r->x[i] != r->candidates[0].x;
            r->candidates[found++] = (Candidate){r->x[i], i};
        }
    }
    if (differ) qsort(r->candidates, found, sizeof(Candidate), larger_first);
    return found;
}

/* The k largest, and whatever equals the smallest of them. */
static Cut top_k(Row *r, int k) {
    int counts[BINS] = {0}, before = 0, bin = 0;
    for (int i = 0; i < r->n; i++) counts[r->bin[i]]++;
    while (before + counts[bin] < k) before += counts[bin++];
    sorted_bin(r, bin);
    return (Cut){r->candidates[k - before - 1].x, r->n};
}

/* The likeliest of those that weigh anything, until they hold `share` of the whole weight; at least one. */
static Cut top_p(Row *r, double share) {
    double held[BINS] = {0}, others[BINS] = {0}, total = 0, before = 0;
    int n = r->n & ~1;
    for (int i = 0; i < n; i += 2) { /* two tables, that neither waits for the other's sum */
        held[r->bin[i]] += r->weights[i];
        others[r->bin[i + 1]] += r->weights[i + 1];
    }
    if (n < r->n) held[r->bin[n]] += r->weights[n];
    for (int bin = 0; bin < BINS; bin++) held[bin] += others[bin];
    for (int bin = 0; bin < BINS; bin++) total += held[bin];
    double wanted = share * total;
    int last = 0; /* the last bin of which some are kept */
    for (int bin = 0; bin < BINS && before < wanted; before += held[bin++])
        if (held[bin] > 0) last = bin;
    before = 0;
    for (int bin = 0; bin < last; bin++) before += held[bin];
    int found = sorted_bin(r, last);
    Cut cut = {r->max, 1};
    for (int i = 0; i < found && (i == 0 || before < wanted); i++) {
        const Candidate *c = r->candidates + i;
        if (r->weights[c->id] == 0) break;
        cut = (Cut){c->x, c->x == cut.least && i ? cut.equals + 1 : 1};
        before += r->weights[c->id];
    }
    return cut;
}

static void apply(Row *r, Cut cut) {
    int equal = 0;
    for (int i = 0; i < r->n; i++) {
        equal += r->x[i] == cut.least;
        r->weights[i] = r->x[i] >= cut.least ? r->weights[i] : 0;
    }
    for (int i = r->n - 1; i >= 0 && equal > cut.equals; i--)
        if (r->x[i] == cut.least) r->weights[i] = 0, equal--;
}

/* The token in whose piece of the line of all weights `point` of 0 … 1 falls. */
static int draw(const Row *r, double point) {
    enum { BLOCK = 64 };
    double total = 0, before = 0;
    double *sums = (double *)(void *)r->candidates; /* which nobody needs any more */
    for (int begin = 0; begin < r->n; begin += BLOCK) {
        int end = begin + BLOCK < r->n ? begin + BLOCK : r->n, i = begin;
        double parts[4] = {0};
        for (; i + 4 <= end; i += 4)
            for (int k = 0; k < 4; k++) parts[k] += r->weights[i + k];
        for (; i < end; i++) parts[0] += r->weights[i];
        total += sums[begin / BLOCK] = parts[0] + parts[1] + (parts[2] + parts[3]);
    }
    double wanted = point * total;
    int begin = 0, last = -1;
    for (; begin + BLOCK < r->n && before + sums[begin / BLOCK] <= wanted; begin += BLOCK)
        before += sums[begin / BLOCK];
    for (int i = begin; i < r->n; i++) {
        if (r->weights[i] > 0) last = i;
        before += r->weights[i];
        if (before > wanted && last == i) return i;
    }
    for (int i = r->n - 1; last < 0 && i >= 0; i--) /* rounded up to the line's very end */
        if (r->weights[i] > 0) last = i;
    return last;
}

/* A token of a row of n > 0 logits, drawn at the point 0 … 1 of the line of all that are kept: the k largest (0: all),
 * of these the likeliest that hold p (1: all), of these those at least `min_p` as likely as the likeliest (0: all).
 * −1 where a logit isn't finite, −2 without memory. */
EXPORT int sample(const float *logits, int n, float temperature, int k, double p, double min_p, double point) {
    Scratch s = {0, 0};
    Row r = {.n = n};
    for (int pass = 0; pass < 2; pass++) { /* the first one counts */
        r.x = take(&s, sizeof(float) * n);
        r.weights = take(&s, sizeof(float) * n);
        r.bin = take(&s, sizeof(uint16_t) * n);
        r.candidates = take(&s, sizeof(Candidate) * (n + 1));
        if (pass == 0 && !reserve(&s, s.used)) return -2;
    }
    if (!isfinite(kernels->dot(logits, logits, n))) return -1;
    for (int i = 0; i < n; i++) r.x[i] = logits[i] / temperature;
    r.max = kernels->largest(r.x, n);
    if (!isfinite(r.max)) return -1;
    memcpy(r.weights, r.x, sizeof(float) * n);
    kernels->exp_minus(r.weights, r.max, n);
    k = k < n ? k : n;
    if (k > 0 || p < 1) put_into_bins(&r);
    if (k > 0) apply(&r, top_k(&r, k));
    if (p < 1) apply(&r, top_p(&r, p));
    if (min_p > 0) apply(&r, (Cut){r.max + (float)log(min_p), n});
    return draw(&r, point);
}
