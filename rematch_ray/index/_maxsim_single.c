/* One query vector against documents of one vector that lie side by side: nothing to gather, to
 * carry or to take a maximum of, which is all that a scan of 32 bytes a document has time for.
 */
#include "_maxsim.h"

#ifdef HAS_X86_PATHS
#include "_maxsim_avx512.h"

#include <string.h>

/* documents scored at once, and how far ahead their codes are fetched */
#define BLOCK 16
#define AHEAD 4096

/* 16 dot products; a register holds `width` documents, or a part of one. */
AVX512 INLINE __m512i dot_block(const uint8_t *codes, const int8_t *query, __m512i start, int dim,
                                const int width) {
    __m512i sums[BLOCK];
    for (int d = 0; d < BLOCK * dim; d += 64) _mm_prefetch((const char *)codes + AHEAD + d, _MM_HINT_T0);
#pragma GCC unroll 16
    for (int j = 0; j < BLOCK / width; j++) sums[j] = start;
    if (width > 1) {
        const __m512i row = _mm512_loadu_si512(query);
#pragma GCC unroll 8
        for (int j = 0; j < BLOCK / width; j++)
            sums[j] = multiply_add(sums[j], _mm512_loadu_si512(codes + 64 * j), row);
        return add_up(sums, width);
    }
    for (int d = 0; d < dim; d += 64) {
        const __m512i row = _mm512_loadu_si512(query + d);
#pragma GCC unroll 16
        for (int j = 0; j < BLOCK; j++)
            sums[j] = multiply_add(
                sums[j], _mm512_loadu_si512(codes + (int64_t)j * dim + d), row);
    }
    return add_up(sums, 1);
}

AVX512 INLINE void score_block(const uint8_t *codes, const float *scales, const int8_t *query,
                               __m512i start, int dim, const int width, float query_scale,
                               float *out) {
    const __m512 dots = _mm512_cvtepi32_ps(dot_block(codes, query, start, dim, width));
    const __m512 scores = _mm512_mul_ps(_mm512_mul_ps(dots, _mm512_loadu_ps(scales)),
                                        _mm512_set1_ps(query_scale));
    /* 0 + x: the mean of _maxsim.c has no negative zero */
    _mm512_storeu_ps(out, _mm512_add_ps(_mm512_setzero_ps(), scores));
}

AVX512 INLINE void score_all(const uint8_t *codes, const float *scales, int64_t count,
                             const int8_t *query, __m512i start, int dim, const int width,
                             float query_scale, float *out) {
    int64_t c = 0;
    for (; c + BLOCK <= count; c += BLOCK)
        score_block(codes + c * dim, scales + c, query, start, dim, width, query_scale, out + c);
    if (c == count) return;
    /* the last few beside zeros: nothing is read past the last document */
    uint8_t last_codes[BLOCK * MAX_DIM + AHEAD];
    float last_scales[BLOCK] = {0}, last[BLOCK];
    memset(last_codes, 0, BLOCK * dim);
    memcpy(last_codes, codes + c * dim, (count - c) * dim);
    memcpy(last_scales, scales + c, (count - c) * sizeof(float));
    score_block(last_codes, last_scales, query, start, dim, width, query_scale, last);
    memcpy(out + c, last, (count - c) * sizeof(float));
}

AVX512 int single_avx512(const uint8_t *codes, const float *scales, int64_t count,
                         const int8_t *query, int dim, float query_scale, float *out) {
    if (dim != 16 && dim != 32 && dim % 64) return 0;
    int8_t repeated[64];
    int32_t sum = 0, start[16] = {0};
    for (int d = 0; d < dim; d++) sum -= 128 * query[d];
    const int width = dim < 64 ? 64 / dim : 1;
    for (int i = 0; i < width; i++) start[i * 16 / width] = sum;
    for (int i = 0; i < 64 && dim < 64; i++) repeated[i] = query[i % dim];
    const int8_t *row = dim < 64 ? repeated : query;
    const __m512i first = _mm512_loadu_si512(start);
    switch (dim) {
        case 16: score_all(codes, scales, count, row, first, 16, 4, query_scale, out); break;
        case 32: score_all(codes, scales, count, row, first, 32, 2, query_scale, out); break;
        case 64: score_all(codes, scales, count, row, first, 64, 1, query_scale, out); break;
        case 128: score_all(codes, scales, count, row, first, 128, 1, query_scale, out); break;
        default: score_all(codes, scales, count, row, first, dim, 1, query_scale, out);
    }
    return 1;
}
#endif
