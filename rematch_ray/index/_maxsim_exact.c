/* Exact scores of a few documents from their float16 originals, as exact.py defines them.
 *
 * Products of float16 numbers and rounded queries are added in double without rounding, so that
 * neither the order of the sums nor the instruction set changes a bit.
 */
#include "_maxsim.h"

#include <stdlib.h>

#ifdef HAS_X86_PATHS
#include "_maxsim_avx512.h"

#include <math.h>

/* document vectors that are widened at once, and query vectors that share a register */
#define VECTORS 8
#define LANES 8

/* 8 doubles, in as many registers as the instruction set needs */
typedef double lanes __attribute__((vector_size(8 * LANES), aligned(8)));

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

/* best[i] = max(best[i], dot(query i, vector)) for 8 query vectors and 4 of a document. */
AVX512 INLINE void raise_by_four(const double *vectors, const double *query, int64_t dim, double *best) {
    lanes a = {0}, b = a, c = a, d = a;
    /* by name: an array would stay in memory */
    for (int64_t i = 0; i < dim; i++) {
        const lanes row = *(const lanes *)(query + i * LANES);
        a += vectors[i] * row;
        b += vectors[dim + i] * row;
        c += vectors[2 * dim + i] * row;
        d += vectors[3 * dim + i] * row;
    }
    const lanes dots[4] = {a, b, c, d};
    for (int v = 0; v < 4; v++)
        for (int i = 0; i < LANES; i++) best[i] = dots[v][i] > best[i] ? dots[v][i] : best[i];
}

AVX512 INLINE void raise_by_one(const double *vector, const double *query, int64_t dim, double *best) {
    lanes dots = {0};
    for (int64_t i = 0; i < dim; i++) dots += vector[i] * *(const lanes *)(query + i * LANES);
    for (int i = 0; i < LANES; i++) best[i] = dots[i] > best[i] ? dots[i] : best[i];
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
            if (c + 1 < count)
                for (int d = 0; d < n * dim; d += 32)
                    __builtin_prefetch(originals + rows[c + 1] * n * dim + d);
            for (int first = 0; first < n; first += VECTORS) {
                const int some = n - first < VECTORS ? n - first : VECTORS;
                widen(document + first * dim, some * dim, vectors);
                for (int g = 0; g < groups; g++) {
                    const double *rows_of_query = query + (int64_t)g * LANES * dim;
                    int v = 0;
                    for (; v + 4 <= some; v += 4)
                        raise_by_four(vectors + v * dim, rows_of_query, dim, best + g * LANES);
                    for (; v < some; v++)
                        raise_by_one(vectors + v * dim, rows_of_query, dim, best + g * LANES);
                }
            }
        }
        double total = best[0];
        for (int i = 1; i < r_q; i++) total += best[i];
        scores[c] = (float)(total / r_q);
    }
}

#endif

/* scores[c] = the mean over the query's vectors of their best dot product in document rows[c].
 *
 * `query` is (r_q, dim); planes hold float16. Returns 0, 1 without memory, 2 for a path that has no
 * such loop: with registers half as wide numpy is as fast.
 */
int maxsim_int8_4_exact(const char *name, const double *query, int r_q, int dim,
                        const struct plane *planes, int num_planes, const int64_t *rows,
                        int64_t count, float *scores) {
#ifdef HAS_X86_PATHS
    if (find_path(name) != &avx512vnni_path) return 2;
    const int64_t padded = (r_q + LANES - 1) / LANES * LANES;
    double *memory = calloc(padded * dim + VECTORS * dim + padded, sizeof(double));
    if (!memory) return 1;
    double *laid_out = memory, *vectors = memory + padded * dim, *best = vectors + VECTORS * dim;
    for (int64_t i = 0; i < r_q; i++)
        for (int d = 0; d < dim; d++)
            laid_out[i / LANES * LANES * dim + d * LANES + i % LANES] = query[i * dim + d];
    score_all(laid_out, r_q, dim, planes, num_planes, rows, count, vectors, best, scores);
    free(memory);
    return 0;
#else
    (void)name, (void)query, (void)r_q, (void)dim, (void)planes, (void)num_planes, (void)rows;
    (void)count, (void)scores;
    return 2;
#endif
}
