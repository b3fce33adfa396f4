/* Multiplying codes and adding up partial sums with AVX-512 and VNNI, for the files that do. */
#ifndef REMATCH_RAY_MAXSIM_AVX512_H
#define REMATCH_RAY_MAXSIM_AVX512_H

#include "_maxsim.h"

#include <immintrin.h>

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))

AVX512 INLINE __m512i add_within_64(__m512i a, __m512i b) {
    const __m512 x = _mm512_castsi512_ps(a), y = _mm512_castsi512_ps(b);
    return _mm512_add_epi32(_mm512_castps_si512(_mm512_shuffle_ps(x, y, 0x88)),
                            _mm512_castps_si512(_mm512_shuffle_ps(x, y, 0xDD)));
}

/* Sums of four dwords each: lane i of every 128 bits is that of the i-th argument. */
AVX512 INLINE __m512i add_within_128(const __m512i *a) {
    const __m512i x =
        _mm512_add_epi32(_mm512_unpacklo_epi32(a[0], a[1]), _mm512_unpackhi_epi32(a[0], a[1]));
    const __m512i y =
        _mm512_add_epi32(_mm512_unpacklo_epi32(a[2], a[3]), _mm512_unpackhi_epi32(a[2], a[3]));
    return _mm512_add_epi32(_mm512_unpacklo_epi64(x, y), _mm512_unpackhi_epi64(x, y));
}

AVX512 INLINE __m512i add_pairs_of_128(__m512i a, __m512i b) {
    return _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xDD));
}

/* Adds up the partial sums of 16 / width vectors: 16 dot products, row by row per vector. */
AVX512 INLINE __m512i add_up(const __m512i *sums, const int width) {
    if (width == 16) return sums[0];
    if (width == 8)
        return _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7),
                                        add_within_64(sums[0], sums[1]));
    if (width == 4)
        return _mm512_permutexvar_epi32(
            _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15),
            add_within_128(sums));
    const __m512i low = add_pairs_of_128(add_within_128(sums), add_within_128(sums + 4));
    if (width == 2)
        return _mm512_permutexvar_epi32(
            _mm512_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15), low);
    return add_pairs_of_128(low,
                            add_pairs_of_128(add_within_128(sums + 8), add_within_128(sums + 12)));
}

/* Products of four codes each, added to `sums`; the empty statement keeps gcc from copying it. */
AVX512 INLINE __m512i multiply_add(__m512i sums, __m512i codes, __m512i query) {
    sums = _mm512_dpbusd_epi32(sums, codes, query);
    __asm__("" : "+v"(sums));
    return sums;
}

#endif
