/* Keeping the large of many scores, and finding the score from which they are kept.
 *
 * What is kept and found depends only on the numbers: the paths agree to the last one.
 */
#include "_maxsim.h"

int64_t keep_at_least(float cut, const float *scores, const int64_t *positions, int64_t first,
                      int64_t count, float *kept_scores, int64_t *kept_positions) {
    int64_t kept = 0;
    /* written first and counted if kept: no branch to guess */
    for (int64_t i = 0; i < count; i++) {
        const float score = scores[i];
        kept_positions[kept] = positions ? positions[i] : first + i;
        kept_scores[kept] = score;
        kept += score >= cut;
    }
    return kept;
}

float nth_smallest(float *values, int64_t count, int64_t rank) {
    int64_t low = 0, high = count - 1;
    while (low < high) {
        const float pivot = values[low + (high - low) / 2];
        int64_t i = low, j = high;
        while (i <= j) {
            while (values[i] < pivot) i++;
            while (values[j] > pivot) j--;
            if (i <= j) {
                const float swapped = values[i];
                values[i++] = values[j];
                values[j--] = swapped;
            }
        }
        if (rank <= j)
            high = j;
        else if (rank >= i)
            low = i;
        else
            break;
    }
    return values[rank];
}

#ifdef HAS_X86_PATHS
#include "_maxsim_avx512.h"

/* numbers of which the rest is quicker one by one */
#define FEW 64

/* scores that are looked at before it is decided how, and those of them that are many: a branch that
 * cannot be guessed costs more than what it saves. Most scores of the loop without it. */
#define PROBED 256
#define MANY (PROBED / 64)
#define MOST 2048

/* Whole registers are stored and those that are kept counted: storing some lanes takes AMD's cores
 * a hundred cycles. None is stored past where as many as were read would end. */
AVX512 static int64_t keep_few(float cut, const float *scores, const int64_t *positions,
                               int64_t first, int64_t count, float *kept_scores,
                               int64_t *kept_positions) {
    const __m512 least = _mm512_set1_ps(cut);
    const __m512i lanes = _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7), eight = _mm512_set1_epi64(8);
    int64_t kept = 0;
    for (int64_t i = 0; i < count; i += 16) {
        const __m512 some = _mm512_loadu_ps(scores + i);
        const __mmask16 mask = _mm512_cmp_ps_mask(some, least, _CMP_GE_OQ);
        if (!mask) continue;
        const __m512i low = positions ? _mm512_loadu_si512(positions + i)
                                      : _mm512_add_epi64(_mm512_set1_epi64(first + i), lanes);
        const __m512i high =
            positions ? _mm512_loadu_si512(positions + i + 8) : _mm512_add_epi64(low, eight);
        int64_t *place = kept_positions + kept;
        _mm512_storeu_ps(kept_scores + kept, _mm512_maskz_compress_ps(mask, some));
        _mm512_storeu_si512(place, _mm512_maskz_compress_epi64((__mmask8)mask, low));
        place += __builtin_popcount(mask & 0xff);
        _mm512_storeu_si512(place, _mm512_maskz_compress_epi64((__mmask8)(mask >> 8), high));
        kept += __builtin_popcount(mask);
    }
    return kept;
}

/* The same without a branch for each register, of at most `MOST` scores whose positions follow each
 * other. */
AVX512 static int64_t keep_many(float cut, const float *scores, int64_t first, int count,
                                float *kept_scores, int64_t *kept_positions) {
    const __m512 least = _mm512_set1_ps(cut);
    const __m512i lanes =
        _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i origin = _mm512_set1_epi64(first);
    int32_t places[MOST + 16];
    int kept = 0;
    for (int i = 0; i < count; i += 16) {
        const __m512 some = _mm512_loadu_ps(scores + i);
        const __mmask16 mask = _mm512_cmp_ps_mask(some, least, _CMP_GE_OQ);
        const __m512i here = _mm512_add_epi32(lanes, _mm512_set1_epi32(i));
        _mm512_storeu_ps(kept_scores + kept, _mm512_maskz_compress_ps(mask, some));
        _mm512_storeu_si512(places + kept, _mm512_maskz_compress_epi32(mask, here));
        kept += __builtin_popcount(mask);
    }
    for (int i = 0; i < kept; i += 8) {
        const __m256i eight = _mm256_loadu_si256((const __m256i *)(places + i));
        _mm512_storeu_si512(kept_positions + i,
                            _mm512_add_epi64(origin, _mm512_cvtepi32_epi64(eight)));
    }
    return kept;
}

AVX512 int64_t keep_at_least_avx512(float cut, const float *scores, const int64_t *positions,
                                    int64_t first, int64_t count, float *kept_scores,
                                    int64_t *kept_positions) {
    const int64_t whole = count / 16 * 16, probed = whole < PROBED ? whole : PROBED;
    int64_t kept =
        keep_few(cut, scores, positions, first, probed, kept_scores, kept_positions);
    const int is_many = !positions && kept >= MANY && whole <= MOST;
    kept += is_many ? keep_many(cut, scores + probed, first + probed, (int)(whole - probed),
                                kept_scores + kept, kept_positions + kept)
                    : keep_few(cut, scores + probed, positions ? positions + probed : NULL,
                               first + probed, whole - probed, kept_scores + kept,
                               kept_positions + kept);
    return kept + keep_at_least(cut, scores + whole, positions ? positions + whole : NULL,
                                first + whole, count - whole, kept_scores + kept,
                                kept_positions + kept);
}

/* Moves what lies on one side of a pivot to the front, in place; how many there are. */
AVX512 static int64_t keep_side(float *values, int64_t count, float pivot, int is_below) {
    const __m512 around = _mm512_set1_ps(pivot);
    int64_t kept = 0;
    for (int64_t i = 0; i < count; i += 16) {
        const int64_t left = count - i;
        const __mmask16 there = left < 16 ? (__mmask16)((1u << left) - 1) : (__mmask16)0xffff;
        const __m512 some = _mm512_maskz_loadu_ps(there, values + i);
        const __mmask16 mask = is_below ? _mm512_mask_cmp_ps_mask(there, some, around, _CMP_LT_OQ)
                                        : _mm512_mask_cmp_ps_mask(there, some, around, _CMP_GT_OQ);
        /* never past what was read already */
        _mm512_mask_storeu_ps(values + kept, there, _mm512_maskz_compress_ps(mask, some));
        kept += __builtin_popcount(mask);
    }
    return kept;
}

AVX512 static int64_t count_below(const float *values, int64_t count, float pivot, int64_t *equal) {
    const __m512 around = _mm512_set1_ps(pivot);
    int64_t below = 0, same = 0;
    for (int64_t i = 0; i < count; i += 16) {
        const int64_t left = count - i;
        const __mmask16 there = left < 16 ? (__mmask16)((1u << left) - 1) : (__mmask16)0xffff;
        const __m512 some = _mm512_maskz_loadu_ps(there, values + i);
        below += __builtin_popcount(_mm512_mask_cmp_ps_mask(there, some, around, _CMP_LT_OQ));
        same += __builtin_popcount(_mm512_mask_cmp_ps_mask(there, some, around, _CMP_EQ_OQ));
    }
    *equal = same;
    return below;
}

AVX512 float nth_smallest_avx512(float *values, int64_t count, int64_t rank) {
    while (count > FEW) {
        const float a = values[count / 4], b = values[count / 2], c = values[3 * (count / 4)];
        const float low = a < b ? a : b, high = a < b ? b : a;
        const float pivot = c < low ? low : c > high ? high : c; /* the middle one */
        int64_t equal;
        const int64_t below = count_below(values, count, pivot, &equal);
        if (rank >= below && rank < below + equal) return pivot;
        if (rank < below) {
            count = keep_side(values, count, pivot, 1);
        } else {
            count = keep_side(values, count, pivot, 0);
            rank -= below + equal;
        }
    }
    return nth_smallest(values, count, rank);
}
#endif
