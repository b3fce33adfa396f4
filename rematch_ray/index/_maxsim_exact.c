/* Exact scores of a few documents from their float16 originals, as exact.py defines them.
 *
 * Products of float16 numbers and rounded queries are added in double without rounding, so that
 * neither the order of the sums nor the instruction set changes a bit.
 */
#include "_maxsim.h"

#include <stdlib.h>
#include <string.h>

#ifdef HAS_X86_PATHS
#include "_maxsim_avx512.h"

#include <math.h>

/* document vectors that are widened at once, and query vectors that share a register */
#define VECTORS 4
#define LANES 8
#define LINE 64
/* documents whose errors are fetched before they are asked for */
#define AHEAD 16

/* Float16 numbers as double. */
AVX512 static void widen(const uint16_t *halves, int64_t count, double *wide) {
    int64_t i = 0;
    for (; i + 16 <= count; i += 16) {
        const __m512 some = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(halves + i)));
        _mm512_storeu_pd(wide + i, _mm512_cvtps_pd(_mm512_castps512_ps256(some)));
        _mm512_storeu_pd(wide + i + 8, _mm512_cvtps_pd(_mm512_extractf32x8_ps(some, 1)));
    }
    const __mmask16 left = (__mmask16)((1u << (count - i)) - 1);
    const __m512 some = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(left, halves + i));
    const __m256 high = _mm512_extractf32x8_ps(some, 1);
    _mm512_mask_storeu_pd(wide + i, (__mmask8)left, _mm512_cvtps_pd(_mm512_castps512_ps256(some)));
    _mm512_mask_storeu_pd(wide + i + 8, (__mmask8)(left >> 8), _mm512_cvtps_pd(high));
}

/* best[i] = max(best[i], dot(query i, vector)) for 8 or 16 query vectors and a few of a document.
 *
 * Registers of 8 doubles hold a sum of each query vector; `blocks` lie side by side, so that what is
 * read of a document serves all of them. Nothing is rounded, so adding while multiplying changes no
 * bit. */
AVX512 INLINE void raise_by(const double *vectors, const int count, const double *query,
                            const int blocks, int64_t dim, double *best) {
    __m512d sums[4][2];
#pragma GCC unroll 4
    for (int v = 0; v < count; v++)
        for (int g = 0; g < blocks; g++) sums[v][g] = _mm512_setzero_pd();
    for (int64_t i = 0; i < dim; i++) {
        __m512d rows[2];
        for (int g = 0; g < blocks; g++)
            rows[g] = _mm512_loadu_pd(query + (g * dim + i) * LANES);
#pragma GCC unroll 4
        for (int v = 0; v < count; v++) {
            const __m512d value = _mm512_set1_pd(vectors[v * dim + i]);
            for (int g = 0; g < blocks; g++)
                sums[v][g] = _mm512_fmadd_pd(value, rows[g], sums[v][g]);
        }
    }
    for (int g = 0; g < blocks; g++) {
        __m512d largest = _mm512_loadu_pd(best + g * LANES);
#pragma GCC unroll 4
        for (int v = 0; v < count; v++) largest = _mm512_max_pd(largest, sums[v][g]);
        _mm512_storeu_pd(best + g * LANES, largest);
    }
}

AVX512 INLINE void raise_by_some(const double *vectors, int count, const double *query,
                                 const int blocks, int64_t dim, double *best) {
    int v = 0;
    for (; v + 4 <= count; v += 4) raise_by(vectors + v * dim, 4, query, blocks, dim, best);
    for (; v < count; v++) raise_by(vectors + v * dim, 1, query, blocks, dim, best);
}

AVX512 static void score_all(const double *query, int r_q, int dim, const struct plane *planes,
                             int num_planes, const int64_t *rows, int64_t count, double *vectors,
                             double *best, float *scores) {
    const int groups = (r_q + LANES - 1) / LANES;
    for (int64_t c = 0; c < count; c++) {
        for (int i = 0; i < groups * LANES; i++) best[i] = -INFINITY;
        for (int p = 0; p < num_planes; p++) {
            const int n = (int)planes[p].per_document;
            const uint16_t *originals = (const uint16_t *)(uintptr_t)planes[p].vectors;
            const uint16_t *document = originals + rows[c] * n * dim;
            const uint16_t *next = originals + rows[c + 1 < count ? c + 1 : c] * n * dim;
            for (int first = 0; first < n; first += VECTORS) {
                const int some = n - first < VECTORS ? n - first : VECTORS;
                for (int d = 0; d < some * dim; d += 32) __builtin_prefetch(next + first * dim + d);
                widen(document + first * dim, some * dim, vectors);
                int g = 0;
                for (; g + 2 <= groups; g += 2)
                    raise_by_some(vectors, some, query + (int64_t)g * LANES * dim, 2, dim,
                                  best + g * LANES);
                if (g < groups)
                    raise_by_some(vectors, some, query + (int64_t)g * LANES * dim, 1, dim,
                                  best + g * LANES);
            }
        }
        double total = best[0];
        for (int i = 1; i < r_q; i++) total += best[i];
        scores[c] = (float)(total / r_q);
    }
}

/* A query as the loops above read it, and room for what they need; NULL without memory. */
static double *lay_out(const double *query, int r_q, int dim) {
    const int64_t padded = (r_q + LANES - 1) / LANES * LANES;
    const size_t bytes = (padded * dim + VECTORS * dim + padded) * sizeof(double);
    /* LANES doubles are a line of the cache, and so is what a register is loaded with */
    double *memory = aligned_alloc(LINE, (bytes + LINE - 1) / LINE * LINE);
    if (memory) memset(memory, 0, bytes);
    for (int64_t i = 0; memory && i < r_q; i++)
        for (int d = 0; d < dim; d++)
            memory[i / LANES * LANES * dim + d * LANES + i % LANES] = query[i * dim + d];
    return memory;
}

static void score_rows(double *laid_out, int r_q, int dim, const struct plane *planes,
                       int num_planes, const int64_t *rows, int64_t count, float *scores) {
    const int64_t padded = (r_q + LANES - 1) / LANES * LANES;
    double *vectors = laid_out + padded * dim, *best = vectors + VECTORS * dim;
    score_all(laid_out, r_q, dim, planes, num_planes, rows, count, vectors, best, scores);
}

/* A document that may be among the best. */
struct candidate {
    int64_t row;
    uint64_t key;
    double upper; /* the most that it can score */
    float score;
};

static int by_upper(const void *a, const void *b) {
    const struct candidate *x = a, *y = b;
    if (x->upper != y->upper) return x->upper < y->upper ? 1 : -1;
    return (x->key > y->key) - (x->key < y->key);
}

static int by_score(const void *a, const void *b) {
    const struct candidate *x = a, *y = b;
    if (x->score != y->score) return x->score < y->score ? 1 : -1;
    return (x->key > y->key) - (x->key < y->key);
}

/* The largest distance of a document's vectors from their 8-bit forms. */
static float largest_error(const int64_t *errors, int num_planes, int64_t row) {
    float largest = ((const float *)(uintptr_t)errors[0])[row];
    for (int p = 1; p < num_planes; p++) {
        const float error = ((const float *)(uintptr_t)errors[p])[row];
        if (error > largest) largest = error;
    }
    return largest;
}

/* The candidates that can be among the `limit` best, by the most that each can score; their number.
 * `floor` is the least 8-bit score that is looked at. */
static int64_t gather(struct candidate *found, const int64_t *errors, int num_planes,
                      const uint64_t *keys, const int64_t *rows, const float *scores, int64_t count,
                      double floor, double slope, double fixed) {
    int64_t held = 0;
    for (int64_t i = 0; i < count; i++) {
        if (i + AHEAD < count)
            for (int p = 0; p < num_planes; p++)
                __builtin_prefetch((const float *)(uintptr_t)errors[p] + rows[i + AHEAD]);
        if (!(scores[i] >= floor)) continue;
        const double upper =
            largest_error(errors, num_planes, rows[i]) * slope + (scores[i] + fixed);
        found[held++] = (struct candidate){rows[i], keys[rows[i]], upper, 0};
    }
    return held;
}

static void read_exactly(double *laid_out, int r_q, int dim, const struct plane *planes,
                         int num_planes, struct candidate *some, int64_t count, int64_t *rows,
                         float *scores) {
    for (int64_t i = 0; i < count; i++) rows[i] = some[i].row;
    score_rows(laid_out, r_q, dim, planes, num_planes, rows, count, scores);
    for (int64_t i = 0; i < count; i++) some[i].score = scores[i];
}

/* Reads the most promising, then those that could still be better than the `limit`-th of them;
 * orders them all and says how many were read. */
static int64_t certify(double *laid_out, int r_q, int dim, const struct plane *planes,
                       int num_planes, struct candidate *found, int64_t held, int64_t limit,
                       int64_t first, int64_t *rows, float *scores) {
    if (first > held) first = held;
    read_exactly(laid_out, r_q, dim, planes, num_planes, found, first, rows, scores);
    int64_t read = first;
    if (first < held) {
        /* a score that was rounded to float32 stays within what its bound covers */
        const double surely = nth_smallest_avx512(scores, first, first - limit);
        while (read < held && found[read].upper >= surely) read++;
        read_exactly(laid_out, r_q, dim, planes, num_planes, found + first, read - first, rows,
                     scores);
    }
    qsort(found, read, sizeof(struct candidate), by_score);
    return read;
}
#endif

/* scores[c] = the mean over the query's vectors of their best dot product in document rows[c].
 *
 * `query` is (r_q, dim); planes hold float16. Returns 0, 1 without memory, 2 for a path that has no
 * such loop: with registers half as wide numpy is as fast.
 */
int maxsim_int8_5_exact(const char *name, const double *query, int r_q, int dim,
                        const struct plane *planes, int num_planes, const int64_t *rows,
                        int64_t count, float *scores) {
#ifdef HAS_X86_PATHS
    if (find_path(name) != &avx512vnni_path) return 2;
    double *laid_out = lay_out(query, r_q, dim);
    if (!laid_out) return 1;
    score_rows(laid_out, r_q, dim, planes, num_planes, rows, count, scores);
    free(laid_out);
    return 0;
#else
    (void)name, (void)query, (void)r_q, (void)dim, (void)planes, (void)num_planes, (void)rows;
    (void)count, (void)scores;
    return 2;
#endif
}

/* The `limit` best of some documents by exact scores, equal ones by their keys: certified.py.
 *
 * `errors` are addresses of each plane's (N,) distances, `scores` 8-bit ones that are off by at most
 * error * slope + fixed; those below the `limit`-th by more than `slack` are not looked at (infinite:
 * all are). `first` documents are read at once. Results stand in `best_rows` and `best_scores`, their
 * number and that of the documents read in `found`. Returns as `exact` does.
 */
int maxsim_int8_5_certify(const char *name, const double *query, int r_q, int dim,
                          const struct plane *planes, int num_planes, const int64_t *errors,
                          const uint64_t *keys, const int64_t *rows, const float *scores,
                          int64_t count, int64_t limit, int64_t first, double slope, double fixed,
                          double slack, int64_t *best_rows, float *best_scores, int64_t *found) {
#ifdef HAS_X86_PATHS
    if (find_path(name) != &avx512vnni_path) return 2;
    double *laid_out = lay_out(query, r_q, dim);
    struct candidate *held = malloc((count + 1) * sizeof(struct candidate));
    int64_t *some_rows = calloc(count + 1, sizeof(int64_t));
    float *some = malloc((count + 1) * sizeof(float));
    const int status = !laid_out || !held || !some_rows || !some;
    if (!status) {
        double floor = -INFINITY;
        if (limit < count && slack < INFINITY) {
            memcpy(some, scores, count * sizeof(float));
            floor = nth_smallest_avx512(some, count, count - limit) - slack;
        }
        const int64_t likely =
            gather(held, errors, num_planes, keys, rows, scores, count, floor, slope, fixed);
        /* without a cut all are read, in any order */
        if (limit < count) qsort(held, likely, sizeof(struct candidate), by_upper);
        const int64_t read = certify(laid_out, r_q, dim, planes, num_planes, held, likely, limit,
                                     limit < count ? first : likely, some_rows, some);
        found[0] = read < limit ? read : limit;
        found[1] = read;
        for (int64_t i = 0; i < found[0]; i++) {
            best_rows[i] = held[i].row;
            best_scores[i] = held[i].score;
        }
    }
    free(some);
    free(some_rows);
    free(held);
    free(laid_out);
    return status;
#else
    (void)name, (void)query, (void)r_q, (void)dim, (void)planes, (void)num_planes, (void)errors;
    (void)keys, (void)rows, (void)scores, (void)count, (void)limit, (void)first, (void)slope;
    (void)fixed, (void)slack, (void)best_rows, (void)best_scores, (void)found;
    return 2;
#endif
}
