/* MaxSim of one query of 16 vectors over all documents as a plain VNNI loop: the yardstick.
 *
 * A register holds four codes of each query vector; AT_ONCE document vectors go by at a time. No
 * carried maxima, no candidate lists, no prefetching, dimensions a multiple of 4. Documents are
 * stored as code + 128. The second function has one scale per document, its maxima in int32.
 */
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

enum { ROWS = 16 };

static __m512i dots_start(const int8_t *query, int dim, int8_t *packed) {
    int32_t start[ROWS] = {0};
    for (int r = 0; r < ROWS; r++)
        for (int d = 0; d < dim; d++) {
            packed[d / 4 * 64 + r * 4 + d % 4] = query[r * dim + d];
            start[r] -= 128 * query[r * dim + d];
        }
    return _mm512_loadu_si512(start);
}

static inline void dots(const uint8_t *vector, int dim, const int8_t *packed, __m512i start,
                        __m512i *sums) {
    for (int j = 0; j < AT_ONCE; j++) sums[j] = start;
    for (int d = 0; d < dim; d += 4)
        for (int j = 0; j < AT_ONCE; j++) {
            int32_t four;
            memcpy(&four, vector + j * dim + d, 4);
            sums[j] = _mm512_dpbusd_epi32(sums[j], _mm512_set1_epi32(four),
                                          _mm512_loadu_si512(packed + d * 16));
            __asm__("" : "+v"(sums[j]));
        }
}

static float mean(__m512 best, const float *query_scales) {
    float maxima[ROWS];
    double total = 0;
    _mm512_storeu_ps(maxima, best);
    for (int r = 0; r < ROWS; r++) total += maxima[r] * query_scales[r];
    return (float)(total / ROWS);
}

/* vectors per document: a multiple of AT_ONCE */
void scale_per_vector(const int8_t *query, const float *query_scales, int dim,
                      const uint8_t *codes, const float *scales, int vectors, int64_t documents,
                      float *scores) {
    int8_t packed[16 * dim];
    const __m512i start = dots_start(query, dim, packed);
    for (int64_t c = 0; c < documents; c++, codes += vectors * dim, scales += vectors) {
        __m512 best = _mm512_set1_ps(-__builtin_inff());
        for (int v = 0; v < vectors; v += AT_ONCE) {
            __m512i sums[AT_ONCE];
            dots(codes + v * dim, dim, packed, start, sums);
            for (int j = 0; j < AT_ONCE; j++)
                best = _mm512_max_ps(best, _mm512_mul_ps(_mm512_cvtepi32_ps(sums[j]),
                                                         _mm512_set1_ps(scales[v + j])));
        }
        scores[c] = mean(best, query_scales);
    }
}

void scale_per_document(const int8_t *query, const float *query_scales, int dim,
                        const uint8_t *codes, const float *scales, int vectors,
                        int64_t documents, float *scores) {
    int8_t packed[16 * dim];
    const __m512i start = dots_start(query, dim, packed);
    for (int64_t c = 0; c < documents; c++, codes += vectors * dim) {
        __m512i best = _mm512_set1_epi32(INT32_MIN);
        for (int v = 0; v < vectors; v += AT_ONCE) {
            __m512i sums[AT_ONCE];
            dots(codes + v * dim, dim, packed, start, sums);
            for (int j = 0; j < AT_ONCE; j++) best = _mm512_max_epi32(best, sums[j]);
        }
        const __m512 scaled =
            _mm512_mul_ps(_mm512_cvtepi32_ps(best), _mm512_set1_ps(scales[c]));
        scores[c] = mean(scaled, query_scales);
    }
}
