/* One query vector against documents of one vector that lie side by side: nothing to gather, to
 * carry or to take a maximum of, which is all that a scan of 32 bytes a document has time for.
 * Codes have 8 bits, or 4: a scan waits for memory, and of those there is half to fetch.
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

/* The same of 4-bit codes, `half` bytes a document: dims of the first half, then of the second. */
AVX512 INLINE __m512i dot_packed(const uint8_t *codes, const int8_t *query, __m512i start, int half,
                                 const int width) {
    __m512i sums[BLOCK];
    const __m512i high = _mm512_set1_epi8((char)0xf0);
    const int step = width > 1 ? 64 : half;
    for (int d = 0; d < BLOCK * half; d += 64) _mm_prefetch((const char *)codes + AHEAD + d, _MM_HINT_T0);
#pragma GCC unroll 16
    for (int j = 0; j < BLOCK / width; j++) sums[j] = start;
    for (int d = 0; d < step; d += 64) {
        const __m512i first = _mm512_loadu_si512(query + d);
        const __m512i second = _mm512_loadu_si512(query + step + d);
#pragma GCC unroll 16
        for (int j = 0; j < BLOCK / width; j++) {
            const __m512i both = _mm512_loadu_si512(codes + (int64_t)j * step + d);
            sums[j] = multiply_add(sums[j], _mm512_and_si512(_mm512_slli_epi16(both, 4), high), first);
            sums[j] = multiply_add(sums[j], _mm512_and_si512(both, high), second);
        }
    }
    return add_up(sums, width);
}

AVX512 INLINE void score_block(const uint8_t *codes, const float *scales, const int8_t *query,
                               __m512i start, float query_scale, const int bytes, const int width,
                               const int is_packed, float *out) {
    const __m512 dots =
        _mm512_cvtepi32_ps(is_packed ? dot_packed(codes, query, start, bytes, width)
                                     : dot_block(codes, query, start, bytes, width));
    const __m512 scores = _mm512_mul_ps(_mm512_mul_ps(dots, _mm512_loadu_ps(scales)),
                                        _mm512_set1_ps(query_scale));
    /* 0 + x: the mean of _maxsim.c has no negative zero */
    _mm512_storeu_ps(out, _mm512_add_ps(_mm512_setzero_ps(), scores));
}

AVX512 INLINE void score_all(const uint8_t *codes, const float *scales, int64_t count,
                             const int8_t *query, __m512i start, float query_scale,
                             const int bytes, const int width, const int is_packed, float *out) {
    int64_t c = 0;
    for (; c + BLOCK <= count; c += BLOCK)
        score_block(codes + c * bytes, scales + c, query, start, query_scale, bytes, width,
                    is_packed, out + c);
    if (c == count) return;
    /* the last few beside zeros: nothing is read past the last document */
    uint8_t last_codes[BLOCK * MAX_DIM + AHEAD];
    float last_scales[BLOCK] = {0}, last[BLOCK];
    memset(last_codes, 0, BLOCK * bytes);
    memcpy(last_codes, codes + c * bytes, (count - c) * bytes);
    memcpy(last_scales, scales + c, (count - c) * sizeof(float));
    score_block(last_codes, last_scales, query, start, query_scale, bytes, width, is_packed, last);
    memcpy(out + c, last, (count - c) * sizeof(float));
}

AVX512 int single_avx512(const uint8_t *codes, int is_packed, const float *scales, int64_t count,
                         const int8_t *query, int dim, float query_scale, float *out) {
    const int bytes = is_packed ? dim / 2 : dim;
    if ((is_packed && dim % 2) || (bytes != 16 && bytes != 32 && bytes % 64)) return 0;
    /* a short query is repeated to fill a register; of a packed one each half */
    int8_t repeated[128];
    for (int i = 0; bytes < 64 && i < (is_packed ? 128 : 64); i++)
        repeated[i] = query[i / 64 * bytes + i % bytes];
    const int8_t *row = bytes < 64 ? repeated : query;
    int32_t sum = 0, start[16] = {0};
    /* documents are stored as code + 128; four bits stand for 16 codes, and count as the ninth */
    for (int d = 0; d < dim; d++) sum -= (is_packed ? 120 : 128) * query[d];
    const int width = bytes < 64 ? 64 / bytes : 1;
    for (int i = 0; i < width; i++) start[i * 16 / width] = sum;
    const __m512i first = _mm512_loadu_si512(start);
    /* usual sizes as constants: loops around the products unroll */
#define SCORE(BYTES, WIDTH, IS_PACKED) \
    score_all(codes, scales, count, row, first, query_scale, BYTES, WIDTH, IS_PACKED, out)
    if (is_packed) switch (bytes) {
            case 16: SCORE(16, 4, 1); break;
            case 32: SCORE(32, 2, 1); break;
            case 64: SCORE(64, 1, 1); break;
            default: SCORE(bytes, 1, 1);
        }
    else switch (bytes) {
            case 16: SCORE(16, 4, 0); break;
            case 32: SCORE(32, 2, 0); break;
            case 64: SCORE(64, 1, 0); break;
            case 128: SCORE(128, 1, 0); break;
            default: SCORE(bytes, 1, 0);
        }
#undef SCORE
    return 1;
}
#endif
