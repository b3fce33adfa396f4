/* Exact scores of a few documents from their float16 originals, as exact.py defines them.
 *
 * Products of float16 numbers and rounded queries are added in double without rounding, so that
 * neither the order of the sums nor the instruction set changes a bit.
 */
#include "_maxsim.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* document vectors that share a pass over 8 query vectors */
#define VECTORS 8
#define LANES 8

INLINE double widen(uint16_t half) {
    const int64_t magnitude = half & 0x7fff;
    /* a normal number: exponent and mantissa move up, and the exponent's offset changes */
    const int64_t bits = (magnitude << 42) + ((int64_t)(1023 - 15) << 52);
    double value;
    memcpy(&value, &bits, sizeof value);
    value = magnitude < 1024 ? (double)(int32_t)magnitude * 0x1p-24 : value;
    return half & 0x8000 ? -value : value;
}

/* best[i] = max(best[i], dot(query i, vector)) for 8 query vectors and up to 8 of a document. */
INLINE void raise(const double *vectors, int count, const double *query, int dim, double *best) {
    double dots[VECTORS][LANES];
    memset(dots, 0, sizeof dots);
    for (int d = 0; d < dim; d++)
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++)
#pragma GCC unroll 8
            for (int i = 0; i < LANES; i++)
                dots[v][i] += vectors[(int64_t)v * dim + d] * query[d * LANES + i];
    for (int v = 0; v < count; v++)
        for (int i = 0; i < LANES; i++) best[i] = dots[v][i] > best[i] ? dots[v][i] : best[i];
}

INLINE void score_all(const double *query, int r_q, int dim, const struct plane *planes,
                      int num_planes, const int64_t *rows, int64_t count, double *vectors,
                      double *best, float *scores) {
    const int groups = (r_q + LANES - 1) / LANES;
    for (int64_t c = 0; c < count; c++) {
        for (int i = 0; i < groups * LANES; i++) best[i] = -INFINITY;
        for (int p = 0; p < num_planes; p++) {
            const int n = (int)planes[p].per_document;
            const uint16_t *originals = (const uint16_t *)(uintptr_t)planes[p].vectors;
            const uint16_t *document = originals + rows[c] * n * dim;
            if (c + 1 < count)
                for (int d = 0; d < n * dim; d += 32)
                    __builtin_prefetch(originals + rows[c + 1] * n * dim + d);
            for (int first = 0; first < n; first += VECTORS) {
                const int some = n - first < VECTORS ? n - first : VECTORS;
                for (int d = 0; d < some * dim; d++) vectors[d] = widen(document[first * dim + d]);
                for (int g = 0; g < groups; g++)
                    raise(vectors, some, query + (int64_t)g * LANES * dim, dim, best + g * LANES);
            }
        }
        double total = best[0];
        for (int i = 1; i < r_q; i++) total += best[i];
        scores[c] = (float)(total / r_q);
    }
}

typedef void score_all_fn(const double *, int, int, const struct plane *, int, const int64_t *,
                          int64_t, double *, double *, float *);

static void score_all_portable(const double *query, int r_q, int dim, const struct plane *planes,
                               int num_planes, const int64_t *rows, int64_t count, double *vectors,
                               double *best, float *scores) {
    score_all(query, r_q, dim, planes, num_planes, rows, count, vectors, best, scores);
}

#ifdef HAS_X86_PATHS
__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512"))) static void
score_all_avx512(const double *query, int r_q, int dim, const struct plane *planes, int num_planes,
                 const int64_t *rows, int64_t count, double *vectors, double *best,
                 float *scores) {
    score_all(query, r_q, dim, planes, num_planes, rows, count, vectors, best, scores);
}

__attribute__((target("avx2"))) static void
score_all_avx2(const double *query, int r_q, int dim, const struct plane *planes, int num_planes,
               const int64_t *rows, int64_t count, double *vectors, double *best, float *scores) {
    score_all(query, r_q, dim, planes, num_planes, rows, count, vectors, best, scores);
}
#endif

static score_all_fn *function_of(const struct path *path) {
#ifdef HAS_X86_PATHS
    if (path == &avx512vnni_path) return score_all_avx512;
    if (path == &avx2_path) return score_all_avx2;
#endif
    (void)path;
    return score_all_portable;
}

/* scores[c] = the mean over the query's vectors of their best dot product in document rows[c].
 *
 * `query` is (r_q, dim); planes hold float16. Returns 0, 1 without memory, 2 for a path that is not
 * there.
 */
int maxsim_int8_2_exact(const char *name, const double *query, int r_q, int dim,
                        const struct plane *planes, int num_planes, const int64_t *rows,
                        int64_t count, float *scores) {
    const struct path *path = find_path(name);
    if (!path) return 2;
    const int64_t padded = (r_q + LANES - 1) / LANES * LANES;
    double *memory = calloc(padded * dim + VECTORS * dim + padded, sizeof(double));
    if (!memory) return 1;
    double *laid_out = memory, *vectors = memory + padded * dim, *best = vectors + VECTORS * dim;
    for (int64_t i = 0; i < r_q; i++)
        for (int d = 0; d < dim; d++)
            laid_out[i / LANES * LANES * dim + d * LANES + i % LANES] = query[i * dim + d];
    function_of(path)(laid_out, r_q, dim, planes, num_planes, rows, count, vectors, best, scores);
    free(memory);
    return 0;
}
