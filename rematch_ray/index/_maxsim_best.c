/* The best documents of a pass: their scores are compared as they come, and never all written.
 *
 * What is kept is the set {c: score(c) >= T - slack}, T the limit-th best score of all, in the
 * order of the documents; it depends neither on blocks nor on the path.
 */
#include "_maxsim.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* maxima of one block: 2**15 float32 are 128 KiB, which a core's second cache keeps */
#define BLOCK_MAXIMA (1 << 15)
#define LEAST_BLOCK 64
#define MOST_BLOCK 2048
#define LEAST_KEPT 1024
/* scores by which a cut is guessed, and how many have to be there to be worth it */
#define SAMPLE 256
#define LEAST_SAMPLED 1024

/* Drops what is more than the slack below a score that at least `limit` of all have. */
static void drop_below(struct kept *kept, float score) {
    const double least = (double)score - kept->slack;
    kept->cut = (float)least;
    /* the smallest float32 that is not below */
    if ((double)kept->cut < least) kept->cut = nextafterf(kept->cut, INFINITY);
    kept->count = kept->path->keep(kept->cut, kept->scores, kept->positions, 0, kept->count,
                                   kept->scores, kept->positions);
    /* ties and slack may leave many: never drop again before twice as many came */
    if (kept->full < 2 * kept->count) kept->full = 2 * kept->count;
}

/* Drops by a score that more than `limit` have by a sample, if they do: sooner than by the exact one,
 * which is found once, among what is left in the end. */
static void drop_most(struct kept *kept) {
    float sample[SAMPLE];
    const double share = (double)SAMPLE * kept->limit / kept->count;
    /* two standard deviations more */
    const int64_t rank = (int64_t)(share + 2 * sqrt(share)) + 1;
    if (kept->count < LEAST_SAMPLED || rank >= SAMPLE) return;
    for (int64_t i = 0; i < SAMPLE; i++) sample[i] = kept->scores[i * kept->count / SAMPLE];
    const float score = kept->path->nth_smallest(sample, SAMPLE, SAMPLE - rank);
    int64_t above = 0;
    for (int64_t i = 0; i < kept->count; i++) above += kept->scores[i] >= score;
    if (above >= kept->limit) drop_below(kept, score);
}

int cut_kept(struct kept *kept) {
    drop_most(kept);
    if (kept->count < kept->limit) return 0;
    float *scratch = malloc(kept->count * sizeof(float));
    if (!scratch) return 1;
    memcpy(scratch, kept->scores, kept->count * sizeof(float));
    drop_below(kept, kept->path->nth_smallest(scratch, kept->count, kept->count - kept->limit));
    free(scratch);
    return 0;
}

struct kept start_keeping(const struct path *path, int64_t limit, double slack, int64_t *positions,
                          float *scores) {
    const int64_t full = 4 * limit > LEAST_KEPT ? 4 * limit : LEAST_KEPT;
    return (struct kept){path, limit, 0, full, slack, -INFINITY, positions, scores};
}

int keep_scores(struct kept *kept, const float *scores, int64_t first, int count,
                const uint8_t *allowed) {
    float *new_scores = kept->scores + kept->count;
    int64_t *positions = kept->positions + kept->count, some = 0;
    const int64_t found =
        kept->path->keep(kept->cut, scores, NULL, first, count, new_scores, positions);
    for (int64_t i = 0; allowed && i < found; i++) {
        new_scores[some] = new_scores[i];
        positions[some] = positions[i];
        some += allowed[positions[some]];
    }
    kept->count += allowed ? some : found;
    if (kept->count < kept->full) return 0;
    const int64_t before = kept->count;
    drop_most(kept);
    return 2 * kept->count > before ? cut_kept(kept) : 0;
}

/* 8-bit codes and scales of a block's packed documents. */
static void unpack_block(const struct plane *plane, int dim, const int64_t *rows, int64_t first,
                         int count, uint8_t *codes, float *scales) {
    const int64_t bytes = vector_bytes(plane, dim);
    for (int i = 0; i < count; i++) {
        const int64_t document = rows ? rows[first + i] : first + i;
        const uint8_t *packed = (const uint8_t *)(uintptr_t)plane->vectors + document * bytes;
        for (int d = 0; d < dim; d++) codes[(int64_t)i * dim + d] = unpack_code(packed, dim, d);
        scales[i] = ((const float *)(uintptr_t)plane->scales)[document];
    }
}

static int score_and_take(const struct path *path, const struct group *groups, int num_groups,
                          const int8_t *query, int num_queries, int r_q, int dim, const struct plane *planes,
                          int num_planes, const int64_t *rows, int64_t count,
                          const uint8_t *allowed, const float *query_scales, struct kept *kept,
                          float *best, float *means, int block) {
    const int64_t stride = (int64_t)num_queries * r_q;
    const int is_single = path->single && stride == 1 && num_planes == 1 && !rows &&
                          planes[0].per_document == 1;
    for (int64_t first = 0; first < count; first += block) {
        const int some = count - first < block ? (int)(count - first) : block;
        const uint8_t *codes = (const uint8_t *)(uintptr_t)planes[0].vectors +
                               first * vector_bytes(planes, dim);
        if (is_single && path->single(codes, planes[0].is_packed != 0,
                                      (const float *)(uintptr_t)planes[0].scales + first, some,
                                      query, dim, query_scales[0], means)) {
            if (keep_scores(kept, means, first, some, allowed)) return 1;
            continue;
        }
        for (int64_t i = 0; i < some * stride; i++) best[i] = -INFINITY;
        if (planes[0].is_packed) {
            float *scales = means + block;
            uint8_t *unpacked = (uint8_t *)(scales + block);
            unpack_block(planes, dim, rows, first, some, unpacked, scales);
            carry_plane(path, groups, num_groups, dim, unpacked, scales, 1, NULL, some, best, stride);
        }
        for (int p = 0; p < num_planes && !planes[0].is_packed; p++) {
            const int64_t n = planes[p].per_document, skipped = rows ? 0 : first * n;
            carry_plane(path, groups, num_groups, dim,
                        (const uint8_t *)(uintptr_t)planes[p].vectors + skipped * dim,
                        (const float *)(uintptr_t)planes[p].scales + skipped, (int)n,
                        rows ? rows + first : NULL, some, best, stride);
        }
        for (int q = 0; q < num_queries; q++) {
            mean_of_rows(best + q * r_q, stride, some, query_scales + q * r_q, r_q, means);
            if (keep_scores(kept + q, means, first, some, allowed)) return 1;
        }
    }
    for (int q = 0; q < num_queries; q++)
        if (cut_kept(kept + q)) return 1;
    return 0;
}

/* Scores documents against queries of `r_q` vectors each and keeps the best of each query.
 *
 * A packed plane is the only one. `rows` chooses documents, NULL takes all in order; `allowed` (or
 * NULL) tells by position which may be kept. `positions` and `scores` have room for `count` per
 * query, `found` says how many are there. Returns 0, 1 without memory, 2 for a path that is not there.
 */
int maxsim_int8_5_best(const char *name, const int8_t *query, int num_queries, int r_q, int dim,
                       const struct plane *planes, int num_planes, const int64_t *rows,
                       int64_t count, const uint8_t *allowed, const float *query_scales,
                       int64_t limit, const double *slack, int64_t *positions, float *scores,
                       int64_t *found) {
    const struct path *path = find_path(name);
    if (!path) return 2;
    const int64_t stride = (int64_t)num_queries * r_q;
    int num_groups, block = (int)(BLOCK_MAXIMA / stride);
    if (block < LEAST_BLOCK) block = LEAST_BLOCK;
    if (block > MOST_BLOCK) block = MOST_BLOCK;
    struct group *groups = make_groups(path, query, (int)stride, dim, &num_groups);
    struct kept *kept = malloc(num_queries * sizeof(struct kept));
    /* maxima and scores of a block, and the scales and codes of one that is unpacked */
    const int64_t unpacked = planes[0].is_packed ? block * (sizeof(float) + dim) : 0;
    float *best = malloc(block * (stride + 1) * sizeof(float) + unpacked);
    int status = 1;
    if (groups && kept && best) {
        for (int q = 0; q < num_queries; q++)
            kept[q] = start_keeping(path, limit, slack[q], positions + q * count, scores + q * count);
        status = score_and_take(path, groups, num_groups, query, num_queries, r_q, dim, planes, num_planes,
                                rows, count, allowed, query_scales, kept, best,
                                best + block * stride, block);
        for (int q = 0; q < num_queries; q++) found[q] = kept[q].count;
    }
    free(best);
    free(kept);
    free(groups);
    return status;
}
