/* Rough scores of all documents from one bit a number: which of them deserve their 8-bit codes.
 *
 * Documents come in groups of 64 that are like each other. Of a group there are, in this order,
 *
 *     64 * bytes    codes: byte j of every document; its bits are the signs of numbers 8 j .. 8 j + 7
 *                   of what sets it off from the group's centre
 *     64 * 2        uint16, how far each sign reaches
 *     8 * bytes     the centre, code + 128
 *
 * score = (float)dot(centre, query) * centre_scale + (float)dot(signs, query) * reach * reach_scale
 *
 * with a query of few levels for the signs; dot products are exact, so that every path gives the
 * same bits. Four signs are looked up at once, for as many documents as a register has bytes.
 */
#include "_maxsim.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK_GROUPS 32
#define SIGNS 4
/* entries of the tables are sums of four query codes and this: two of them fit a byte */
#define OFFSET 64
/* bytes of a document whose sums fit 16 bits */
#define BYTES_16 256
#define AHEAD 4
/* one group in so many is sampled for a first cut, if as many of those wanted are expected there */
#define SAMPLE_STEP 64
#define LEAST_SHARE 8

static void make_tables(const int8_t *query, int bytes, uint8_t *tables) {
    for (int t = 0; t < 2 * bytes; t++)
        for (int signs = 0; signs < 16; signs++) {
            int sum = OFFSET;
            for (int i = 0; i < SIGNS; i++)
                sum += signs >> i & 1 ? query[SIGNS * t + i] : -query[SIGNS * t + i];
            tables[16 * t + signs] = (uint8_t)sum;
        }
}

static void look_up(const uint8_t *codes, int bytes, const uint8_t *tables, int32_t *sums) {
    memset(sums, 0, GROUP_DOCUMENTS * sizeof(int32_t));
    for (int j = 0; j < bytes; j++, tables += 32, codes += GROUP_DOCUMENTS)
        for (int i = 0; i < GROUP_DOCUMENTS; i++)
            sums[i] += tables[codes[i] & 15] + tables[16 + (codes[i] >> 4)];
}

/* 128 is taken off the sum and not off each code: gcc 12 vectorises that wrongly for VNNI. */
static int32_t dot_of_centre(const uint8_t *centre, const struct rough_query *query) {
    int32_t dot = query->centre_start;
    for (int d = 0; d < 8 * query->bytes; d++) dot += (int32_t)centre[d] * query->centre[d];
    return dot;
}

/* Scores of a group's documents from the sums that were looked up. */
INLINE void score_sums(const uint8_t *group, const struct rough_query *query, const int32_t *sums,
                       float *scores) {
    const uint8_t *reaches = group + GROUP_DOCUMENTS * query->bytes;
    const uint8_t *centre = reaches + GROUP_DOCUMENTS * sizeof(uint16_t);
    const float start = (float)dot_of_centre(centre, query) * query->centre_scale;
    uint16_t reach[GROUP_DOCUMENTS];
    memcpy(reach, reaches, sizeof reach);
    for (int i = 0; i < GROUP_DOCUMENTS; i++) {
        const float along = (float)(sums[i] - 2 * OFFSET * query->bytes) * (float)reach[i];
        scores[i] = start + along * query->reach_scale;
    }
}

void rough_portable(const uint8_t *groups, int64_t count, const struct rough_query *query,
                    float *scores) {
    int32_t sums[GROUP_DOCUMENTS];
    for (int64_t i = 0; i < count; i++, groups += GROUP_BYTES(query->bytes)) {
        look_up(groups, query->bytes, query->tables, sums);
        score_sums(groups, query, sums, scores + i * GROUP_DOCUMENTS);
    }
}

#ifdef HAS_X86_PATHS
#include "_maxsim_avx512.h"

#define AVX2 __attribute__((target("avx2")))

/* Sums of 32 documents whose bytes lie `GROUP_DOCUMENTS` apart. */
AVX2 static void look_up_32(const uint8_t *codes, int bytes, const uint8_t *tables, int32_t *sums) {
    const __m256i four = _mm256_set1_epi8(15);
    memset(sums, 0, 32 * sizeof(int32_t));
    for (int first = 0; first < bytes; first += BYTES_16) {
        const int stop = bytes - first < BYTES_16 ? bytes : first + BYTES_16;
        /* of neighbours as one number of 16 bits, which may overflow, and of the second alone */
        __m256i both = _mm256_setzero_si256(), second = both;
        for (int j = first; j < stop; j++) {
            const __m256i code = _mm256_loadu_si256((const void *)(codes + j * GROUP_DOCUMENTS));
            const __m128i *table = (const void *)(tables + 32 * j);
            const __m256i low = _mm256_broadcastsi128_si256(_mm_loadu_si128(table));
            const __m256i high = _mm256_broadcastsi128_si256(_mm_loadu_si128(table + 1));
            const __m256i found = _mm256_add_epi8(
                _mm256_shuffle_epi8(low, _mm256_and_si256(code, four)),
                _mm256_shuffle_epi8(high, _mm256_and_si256(_mm256_srli_epi16(code, 4), four)));
            both = _mm256_add_epi16(both, found);
            second = _mm256_add_epi16(second, _mm256_srli_epi16(found, 8));
        }
        uint16_t of_first[16], of_second[16];
        _mm256_storeu_si256((void *)of_first, _mm256_sub_epi16(both, _mm256_slli_epi16(second, 8)));
        _mm256_storeu_si256((void *)of_second, second);
        for (int i = 0; i < 16; i++) {
            sums[2 * i] += of_first[i];
            sums[2 * i + 1] += of_second[i];
        }
    }
}

AVX2 void rough_avx2(const uint8_t *groups, int64_t count, const struct rough_query *query,
                     float *scores) {
    int32_t sums[GROUP_DOCUMENTS];
    for (int64_t i = 0; i < count; i++, groups += GROUP_BYTES(query->bytes)) {
        look_up_32(groups, query->bytes, query->tables, sums);
        look_up_32(groups + 32, query->bytes, query->tables, sums + 32);
        score_sums(groups, query, sums, scores + i * GROUP_DOCUMENTS);
    }
}

AVX512 INLINE int32_t dot_of_centre_avx512(const uint8_t *centre, const struct rough_query *query,
                                           const int bytes) {
    const int dim = 8 * bytes; /* a power of two */
    const __mmask64 there = dim < 64 ? ((__mmask64)1 << dim) - 1 : ~(__mmask64)0;
    __m512i sums = _mm512_setzero_si512();
    for (int d = 0; d < dim; d += 64)
        sums = multiply_add(sums, _mm512_maskz_loadu_epi8(there, centre + d),
                            _mm512_maskz_loadu_epi8(there, query->centre + d));
    return _mm512_reduce_add_epi32(sums) + query->centre_start;
}

AVX512 INLINE void score_16(__m256i sums, const uint8_t *reach, __m512 start, __m512i offset,
                            __m512 scale, float *scores) {
    const __m512i dots = _mm512_sub_epi32(_mm512_cvtepu16_epi32(sums), offset);
    const __m512 reaches =
        _mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)reach)));
    const __m512 along = _mm512_mul_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(dots), reaches), scale);
    _mm512_storeu_ps(scores, _mm512_add_ps(start, along));
}

/* Scores of a group from the sums of neighbours, see look_up_32. */
AVX512 INLINE void score_group(const uint8_t *group, __m512i both, __m512i second,
                               const struct rough_query *query, const int bytes, float *scores) {
    const uint8_t *reaches = group + GROUP_DOCUMENTS * bytes;
    const uint8_t *centre = reaches + GROUP_DOCUMENTS * sizeof(uint16_t);
    const __m512 start =
        _mm512_set1_ps((float)dot_of_centre_avx512(centre, query, bytes) * query->centre_scale);
    const __m512i first = _mm512_sub_epi16(both, _mm512_slli_epi16(second, 8));
    const __m512i low = _mm512_unpacklo_epi16(first, second);
    const __m512i high = _mm512_unpackhi_epi16(first, second);
    const __m512i half =
        _mm512_permutex2var_epi64(low, _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), high);
    const __m512i rest =
        _mm512_permutex2var_epi64(low, _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15), high);
    const __m512i offset = _mm512_set1_epi32(2 * OFFSET * bytes);
    const __m512 scale = _mm512_set1_ps(query->reach_scale);
    score_16(_mm512_castsi512_si256(half), reaches, start, offset, scale, scores);
    score_16(_mm512_extracti64x4_epi64(half, 1), reaches + 32, start, offset, scale, scores + 16);
    score_16(_mm512_castsi512_si256(rest), reaches + 64, start, offset, scale, scores + 32);
    score_16(_mm512_extracti64x4_epi64(rest, 1), reaches + 96, start, offset, scale, scores + 48);
}

/* Two groups beside each other, which share what is loaded of the tables. */
AVX512 INLINE void rough_pair(const uint8_t *group, const uint8_t *other,
                              const struct rough_query *query, const int bytes, float *scores,
                              float *other_scores) {
    const __m512i four = _mm512_set1_epi8(15);
    const uint8_t *table = query->tables;
    __m512i both = _mm512_setzero_si512(), second = both, other_both = both, other_second = both;
#pragma GCC unroll 4
    for (int j = 0; j < bytes; j++, table += 32) {
        const __m512i low = _mm512_broadcast_i32x4(_mm_loadu_si128((const void *)table));
        const __m512i high = _mm512_broadcast_i32x4(_mm_loadu_si128((const void *)(table + 16)));
        __m512i code = _mm512_loadu_si512(group + j * GROUP_DOCUMENTS);
        __m512i found = _mm512_add_epi8(
            _mm512_shuffle_epi8(low, _mm512_and_si512(code, four)),
            _mm512_shuffle_epi8(high, _mm512_and_si512(_mm512_srli_epi16(code, 4), four)));
        both = _mm512_add_epi16(both, found);
        second = _mm512_add_epi16(second, _mm512_srli_epi16(found, 8));
        code = _mm512_loadu_si512(other + j * GROUP_DOCUMENTS);
        found = _mm512_add_epi8(
            _mm512_shuffle_epi8(low, _mm512_and_si512(code, four)),
            _mm512_shuffle_epi8(high, _mm512_and_si512(_mm512_srli_epi16(code, 4), four)));
        other_both = _mm512_add_epi16(other_both, found);
        other_second = _mm512_add_epi16(other_second, _mm512_srli_epi16(found, 8));
    }
    score_group(group, both, second, query, bytes, scores);
    score_group(other, other_both, other_second, query, bytes, other_scores);
}

AVX512 INLINE void rough_of(const uint8_t *groups, int64_t count, const struct rough_query *query,
                            const int bytes, float *scores) {
    const int64_t size = GROUP_BYTES(bytes);
    for (int64_t i = 0; i < count; i += 2) {
        const uint8_t *group = groups + i * size;
        for (int64_t d = 0; d < 2 * size; d += 64)
            _mm_prefetch((const char *)group + AHEAD * size + d, _MM_HINT_T0);
        /* of an odd number the last is scored twice */
        const int next = i + 1 < count;
        float *own = scores + i * GROUP_DOCUMENTS;
        rough_pair(group, group + next * size, query, bytes, own, own + next * GROUP_DOCUMENTS);
    }
}

AVX512 void rough_avx512(const uint8_t *groups, int64_t count, const struct rough_query *query,
                         float *scores) {
    /* the usual size as a constant */
    if (query->bytes == 16)
        rough_of(groups, count, query, 16, scores);
    else if (query->bytes <= BYTES_16)
        rough_of(groups, count, query, query->bytes, scores);
    else
        rough_avx2(groups, count, query, scores);
}
#endif

/* What is scored. */
struct rough_pass {
    const struct path *path;
    const uint8_t *groups;
    const struct rough_query *query;
    int64_t count;
    const uint8_t *allowed; /* or NULL */
};

/* A score that more than `limit` documents reach, by a sample of them: those below it are never
 * written down. -INFINITY where too few are sampled to tell, or without memory. */
static float guess_cut(const struct rough_pass *pass, int64_t limit) {
    const int64_t size = GROUP_BYTES(pass->query->bytes), full = pass->count / GROUP_DOCUMENTS;
    float block[GROUP_DOCUMENTS], cut = -INFINITY;
    float *sample = malloc((full / SAMPLE_STEP + 1) * sizeof block);
    int64_t sampled = 0;
    for (int64_t g = 0; sample && g < full; g += SAMPLE_STEP) {
        pass->path->rough(pass->groups + g * size, 1, pass->query, block);
        for (int i = 0; i < GROUP_DOCUMENTS; i++) {
            sample[sampled] = block[i];
            sampled += !pass->allowed || pass->allowed[g * GROUP_DOCUMENTS + i];
        }
    }
    /* neighbours are like each other: a sample of groups says less than one of documents */
    const double share = (double)limit / SAMPLE_STEP;
    const int64_t rank = (int64_t)(1.5 * share + 6 * sqrt(share));
    if (share >= LEAST_SHARE && rank < sampled / 2)
        cut = pass->path->nth_smallest(sample, sampled, sampled - 1 - rank);
    free(sample);
    return cut;
}

/* Keeps the best of all documents that reach a score; returns 1 without memory. */
static int score_all(const struct rough_pass *pass, struct kept *kept) {
    const int64_t size = GROUP_BYTES(pass->query->bytes);
    const int64_t num_groups = (pass->count + GROUP_DOCUMENTS - 1) / GROUP_DOCUMENTS;
    float block[BLOCK_GROUPS * GROUP_DOCUMENTS];
    for (int64_t g = 0; g < num_groups; g += BLOCK_GROUPS) {
        const int64_t some = num_groups - g < BLOCK_GROUPS ? num_groups - g : BLOCK_GROUPS;
        const int64_t first = g * GROUP_DOCUMENTS, stop = first + some * GROUP_DOCUMENTS;
        const int64_t scored = (stop < pass->count ? stop : pass->count) - first;
        pass->path->rough(pass->groups + g * size, some, pass->query, block);
        if (keep_scores(kept, block, first, (int)scored, pass->allowed)) return 1;
    }
    return cut_kept(kept);
}

/* Scores all documents roughly and keeps the best: `limit`, and what equals the last of them.
 *
 * `signs` has the query's codes beside signs, -15..15, `centre` those beside centres; `allowed` (or
 * NULL) tells which documents may be kept. `positions` and `scores` have room for `count`, `found`
 * says how many are there. Returns 0, 1 without memory, 2 for a path that is not there.
 */
int maxsim_int8_5_rough(const char *name, const uint8_t *groups, int bytes, int64_t count,
                        const int8_t *signs, const int8_t *centre, float reach_scale,
                        float centre_scale, const uint8_t *allowed, int64_t limit,
                        int64_t *positions, float *scores, int64_t *found) {
    const struct path *path = find_path(name);
    if (!path) return 2;
    uint8_t *tables = malloc(32 * (size_t)bytes);
    if (!tables) return 1;
    make_tables(signs, bytes, tables);
    struct rough_query query = {bytes, tables, centre, 0, centre_scale, reach_scale};
    for (int d = 0; d < 8 * bytes; d++) query.centre_start -= 128 * centre[d];
    const struct rough_pass pass = {path, groups, &query, count, allowed};
    struct kept kept = start_keeping(path, limit, 0, positions, scores);
    kept.cut = guess_cut(&pass, limit);
    int status = score_all(&pass, &kept);
    if (!status && kept.count < limit && kept.cut > -INFINITY) {
        /* guessed too high */
        kept = start_keeping(path, limit, 0, positions, scores);
        status = score_all(&pass, &kept);
    }
    *found = kept.count;
    free(tables);
    return status;
}
