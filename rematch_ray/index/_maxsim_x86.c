/* The paths for x86-64: AVX-512 with VNNI, and AVX2.
 *
 * A register holds the products of `width` query vectors with a few bytes of one document vector,
 * which one load spreads over it. 16 query vectors leave a lane per dot product; fewer leave
 * partial sums, which a tree of shuffles adds up across several document vectors at once.
 */
#include "_maxsim.h"

#ifdef HAS_X86_PATHS
#include "_maxsim_avx512.h"

#include <string.h>

#define AVX2 __attribute__((target("avx2")))

/* 64 / width codes of each row, side by side; zero past the last row and dimension. */
static void pack_avx512(struct group *group, const int8_t *rows, int dim) {
    const int width = group->width, bytes = 64 / width;
    int8_t *packed = group->packed;
    int32_t start[GROUP_ROWS] = {0};
    for (int r = 0; r < group->rows; r++) {
        const int8_t *row = rows + (int64_t)r * dim;
        int8_t *lanes = packed + r * bytes;
        for (int d = 0; d < dim; d += bytes, lanes += 64)
            memcpy(lanes, row + d, dim - d < bytes ? dim - d : bytes);
        start[r * (bytes / 4)] = group->start[r];
    }
    memcpy(group->start, start, sizeof start);
}

/* `64 / width` bytes, repeated `width` times. */
AVX512 INLINE __m512i spread(const uint8_t *bytes, const int width) {
    int32_t four;
    int64_t eight;
    switch (width) {
        case 16: memcpy(&four, bytes, 4); return _mm512_set1_epi32(four);
        case 8: memcpy(&eight, bytes, 8); return _mm512_set1_epi64(eight);
        case 4: return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)bytes));
        case 2: return _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)bytes));
        default: return _mm512_loadu_si512(bytes);
    }
}

/* The same where fewer are left: it must not read past the last document. */
AVX512 INLINE __m512i spread_last(const uint8_t *bytes, int left, const int width) {
    const __mmask64 mask = ((__mmask64)1 << left) - 1;
    const __m128i low = _mm_maskz_loadu_epi8((__mmask16)mask, bytes);
    switch (width) {
        case 16: return _mm512_broadcastd_epi32(low);
        case 8: return _mm512_broadcastq_epi64(low);
        case 4: return _mm512_broadcast_i32x4(low);
        case 2: return _mm512_broadcast_i64x4(_mm256_maskz_loadu_epi8((__mmask32)mask, bytes));
        default: return _mm512_maskz_loadu_epi8(mask, bytes);
    }
}

AVX512 INLINE void score_avx512_width(const struct chunk *chunk, const struct chunk *ahead,
                                      const struct group *group, int dim, float *out,
                                      const int width, const int block) {
    const int bytes = 64 / width, tile = 16 / width;
    const __m512i start = _mm512_loadu_si512(group->start);
    const __m512i lanes =
        _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i vector_of_lane = _mm512_srli_epi32(lanes, width == 16  ? 4
                                                            : width == 8 ? 3
                                                            : width == 4 ? 2
                                                            : width == 2 ? 1
                                                                         : 0);
    for (int v = 0; v < chunk->count; v += block) {
        const uint8_t *vectors[16];
        __m512i sums[16];
#pragma GCC unroll 16
        for (int j = 0; j < block; j++) vectors[j] = chunk->vectors[v + j], sums[j] = start;
        if (ahead)
            for (int j = v; j < v + block && j < ahead->count; j++)
                for (int d = 0; d < dim; d += 64)
                    _mm_prefetch((const char *)ahead->vectors[j] + d, _MM_HINT_T0);
        const int8_t *query = group->packed;
        int d = 0;
        for (; d + bytes <= dim; d += bytes, query += 64) {
            const __m512i row = _mm512_load_si512(query);
#pragma GCC unroll 16
            for (int j = 0; j < block; j++)
                sums[j] = multiply_add(sums[j], spread(vectors[j] + d, width), row);
        }
        if (d < dim) {
            const __m512i row = _mm512_load_si512(query);
#pragma GCC unroll 16
            for (int j = 0; j < block; j++)
                sums[j] = multiply_add(sums[j], spread_last(vectors[j] + d, dim - d, width), row);
        }
#pragma GCC unroll 16
        for (int j = 0; j < block; j += tile) {
            const __m512 dots = _mm512_cvtepi32_ps(add_up(sums + j, width));
            const __m512 scales =
                width == 16 ? _mm512_set1_ps(chunk->scales[v + j])
                            : _mm512_permutexvar_ps(vector_of_lane,
                                                    _mm512_loadu_ps(chunk->scales + v + j));
            _mm512_storeu_ps(out + (v + j) * width, _mm512_mul_ps(dots, scales));
        }
    }
}

AVX512 INLINE void score_avx512_dim(const struct chunk *chunk, const struct chunk *ahead,
                                    const struct group *group, int dim, float *out) {
    switch (group->width) {
        /* 12 at once, with their addresses more than there are registers, were slower by a fifth */
        case 16: score_avx512_width(chunk, ahead, group, dim, out, 16, 8); break;
        case 8: score_avx512_width(chunk, ahead, group, dim, out, 8, 8); break;
        case 4: score_avx512_width(chunk, ahead, group, dim, out, 4, 8); break;
        case 2: score_avx512_width(chunk, ahead, group, dim, out, 2, 8); break;
        default: score_avx512_width(chunk, ahead, group, dim, out, 1, 16);
    }
}

AVX512 static void score_avx512(const struct chunk *chunk, const struct chunk *ahead,
                                const struct group *group, int dim, float *out) {
    /* usual dimensions as constants: loops around the products unroll */
    if (dim == 128)
        score_avx512_dim(chunk, ahead, group, 128, out);
    else if (dim == 32)
        score_avx512_dim(chunk, ahead, group, 32, out);
    else
        score_avx512_dim(chunk, ahead, group, dim, out);
}

AVX512 static void fold_avx512(const struct chunk *chunk, const struct group *group,
                               const float *scores, float *best, int64_t stride,
                               int vectors_per_document) {
    const __mmask16 mask = (__mmask16)((1u << group->rows) - 1);
    const int width = group->width;
    int position = chunk->position;
    float *row = best + chunk->document * stride + group->first;
    if (vectors_per_document == 1 && stride == width && group->rows == width) {
        /* maxima lie as the scores do */
        for (int i = 0; i < chunk->count * width; i++)
            row[i] = scores[i] > row[i] ? scores[i] : row[i];
        return;
    }
    for (int v = 0; v < chunk->count; row += stride, position = 0) {
        int stop = v + vectors_per_document - position;
        if (stop > chunk->count) stop = chunk->count;
        /* lanes past the width hold other vectors' scores, and are never stored */
        __m512 largest[2] = {_mm512_maskz_loadu_ps(mask, row), _mm512_loadu_ps(scores + v * width)};
        for (v++; v + 2 <= stop; v += 2)
            for (int i = 0; i < 2; i++)
                largest[i] = _mm512_max_ps(largest[i], _mm512_loadu_ps(scores + (v + i) * width));
        if (v < stop) largest[0] = _mm512_max_ps(largest[0], _mm512_loadu_ps(scores + v++ * width));
        _mm512_mask_storeu_ps(row, mask, _mm512_max_ps(largest[0], largest[1]));
    }
}

const struct path avx512vnni_path = {"avx512vnni",  pack_avx512,          score_avx512,
                                     fold_avx512,   single_avx512,        keep_at_least_avx512,
                                     nth_smallest_avx512, rough_avx512};

/* int16: pairs of dims of all rows side by side for 8 and 16 rows, else row by row. */
static void pack_avx2(struct group *group, const int8_t *rows, int dim) {
    const int width = group->width, padded = (dim + 15) / 16 * 16;
    int16_t *packed = group->packed;
    for (int r = 0; r < group->rows; r++)
        for (int d = 0; d < dim; d++) {
            int place = width >= 8 ? d / 2 * 2 * width + 2 * r + d % 2 : r * padded + d;
            packed[place] = rows[(int64_t)r * dim + d];
        }
}

/* Codes as int16, as many as fit whole registers: multiplying bytes would saturate. */
AVX2 INLINE void widen(const uint8_t *codes, int dim, int16_t *wide) {
    int d = 0;
    for (; d + 16 <= dim; d += 16)
        _mm256_storeu_si256((__m256i *)(wide + d),
                            _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(codes + d))));
    for (; d < dim; d++) wide[d] = codes[d];
    for (; d % 16; d++) wide[d] = 0;
}

/* Four vectors with 8 or 16 rows: a lane per dot product. */
AVX2 INLINE void dot_rows(int16_t (*wide)[MAX_DIM], const struct group *group, int dim,
                          const float *scales, float *out, const int width) {
    const int halves = width / 8;
    __m256i sums[4][2];
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++)
        for (int h = 0; h < halves; h++)
            sums[j][h] = _mm256_loadu_si256((const __m256i *)(group->start + 8 * h));
    const int16_t *query = group->packed;
    for (int d = 0; d < dim; d += 2, query += 2 * width) {
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            int32_t pair;
            memcpy(&pair, wide[j] + d, 4);
            const __m256i codes = _mm256_set1_epi32(pair);
            for (int h = 0; h < halves; h++) {
                const __m256i rows = _mm256_load_si256((const __m256i *)(query + 16 * h));
                sums[j][h] = _mm256_add_epi32(sums[j][h], _mm256_madd_epi16(codes, rows));
            }
        }
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++)
        for (int h = 0; h < halves; h++)
            _mm256_storeu_ps(out + j * width + 8 * h,
                             _mm256_mul_ps(_mm256_cvtepi32_ps(sums[j][h]),
                                           _mm256_set1_ps(scales[j])));
}

/* Four vectors with one row: the lanes share the dimensions and are added up at the end. */
AVX2 INLINE void dot_row(int16_t (*wide)[MAX_DIM], const int16_t *query, int32_t start, int dim,
                         const float *scales, float *out, int width) {
    __m256i sums[4];
    for (int j = 0; j < 4; j++) sums[j] = _mm256_setzero_si256();
    for (int d = 0; d < dim; d += 16) {
        const __m256i row = _mm256_load_si256((const __m256i *)(query + d));
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++)
            sums[j] = _mm256_add_epi32(
                sums[j],
                _mm256_madd_epi16(row, _mm256_loadu_si256((const __m256i *)(wide[j] + d))));
    }
    const __m256i four = _mm256_hadd_epi32(_mm256_hadd_epi32(sums[0], sums[1]),
                                           _mm256_hadd_epi32(sums[2], sums[3]));
    const __m128i dots = _mm_add_epi32(
        _mm_set1_epi32(start),
        _mm_add_epi32(_mm256_castsi256_si128(four), _mm256_extracti128_si256(four, 1)));
    float scaled[4];
    _mm_storeu_ps(scaled, _mm_mul_ps(_mm_cvtepi32_ps(dots), _mm_loadu_ps(scales)));
    for (int j = 0; j < 4; j++) out[j * width] = scaled[j];
}

AVX2 static void score_avx2(const struct chunk *chunk, const struct chunk *ahead,
                            const struct group *group, int dim, float *out) {
    const int width = group->width, padded = (dim + 15) / 16 * 16;
    int16_t wide[4][MAX_DIM] __attribute__((aligned(64)));
    for (int v = 0; v < chunk->count; v += 4) {
        if (ahead)
            for (int j = v; j < v + 4 && j < ahead->count; j++)
                for (int d = 0; d < dim; d += 64)
                    _mm_prefetch((const char *)ahead->vectors[j] + d, _MM_HINT_T0);
        for (int j = 0; j < 4; j++) widen(chunk->vectors[v + j], dim, wide[j]);
        const float *scales = chunk->scales + v;
        float *scores = out + v * width;
        if (width == 16)
            dot_rows(wide, group, dim, scales, scores, 16);
        else if (width == 8)
            dot_rows(wide, group, dim, scales, scores, 8);
        else
            for (int r = 0; r < group->rows; r++)
                dot_row(wide, (const int16_t *)group->packed + r * padded, group->start[r], dim,
                        scales, scores + r, width);
    }
}

AVX2 static void fold_avx2(const struct chunk *chunk, const struct group *group,
                           const float *scores, float *best, int64_t stride,
                           int vectors_per_document) {
    fold_scores(chunk, group, scores, best, stride, vectors_per_document);
}

const struct path avx2_path = {"avx2", pack_avx2,     score_avx2,  fold_avx2,
                              NULL,   keep_at_least, nth_smallest, rough_avx2};
#endif
