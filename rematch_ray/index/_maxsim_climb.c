/* Candidates through growing budgets: each keeps the best of those before it, and the next costs
 * only the vectors that are new to it. What is kept depends neither on the path nor on blocks.
 */
#define _POSIX_C_SOURCE 199309L
#include "_maxsim.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Where the candidates stand. */
struct climb {
    const struct path *path;
    const int8_t *query;
    const float *query_scales;
    int dim, stride; /* of best: the query vectors of the last rung */
    const struct plane *planes;
    int64_t *rows, count;
    float *best, *scores;
};

static double now_ms(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return 1e3 * at.tv_sec + 1e-6 * at.tv_nsec;
}

/* Raises the maxima of query vectors first..stop by some planes; returns 1 without memory. */
static int raise_by(const struct climb *at, int first, int stop, int64_t from, int64_t to) {
    if (first >= stop || from >= to) return 0;
    int num_groups;
    struct group *groups = make_groups(at->path, at->query + (int64_t)first * at->dim, stop - first,
                                       at->dim, &num_groups);
    if (!groups) return 1;
    for (const struct plane *plane = at->planes + from; plane < at->planes + to; plane++)
        carry_plane(at->path, groups, num_groups, at->dim,
                    (const uint8_t *)(uintptr_t)plane->vectors,
                    (const float *)(uintptr_t)plane->scales, (int)plane->per_document, at->rows,
                    at->count, at->best + first, at->stride);
    free(groups);
    return 0;
}

static int by_key(const void *a, const void *b) {
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* Goes on with the `keep` best, in the order in which they stand; of those that equal the last one
 * the smallest keys. Returns 1 without memory. */
static int cut(struct climb *at, const uint64_t *keys, int64_t keep) {
    if (keep >= at->count) return 0;
    float *sorted = malloc(at->count * sizeof(float));
    uint64_t *tied = malloc(at->count * sizeof(uint64_t));
    int64_t above = 0, num_tied = 0, left = 0;
    if (sorted && tied) {
        memcpy(sorted, at->scores, at->count * sizeof(float));
        const float least = at->path->nth_smallest(sorted, at->count, at->count - keep);
        for (int64_t i = 0; i < at->count; i++) {
            above += at->scores[i] > least;
            if (at->scores[i] == least) tied[num_tied++] = keys[at->rows[i]];
        }
        qsort(tied, num_tied, sizeof(uint64_t), by_key);
        const uint64_t last = tied[keep - above - 1];
        for (int64_t i = 0; i < at->count; i++) {
            const float score = at->scores[i];
            if (score < least || (score == least && keys[at->rows[i]] > last)) continue;
            at->scores[left] = score;
            at->rows[left] = at->rows[i];
            if (left != i)
                memcpy(at->best + left * at->stride, at->best + i * at->stride,
                       at->stride * sizeof(float));
            left++;
        }
        at->count = left;
    }
    free(sorted);
    free(tied);
    return !left;
}

/* Takes `count` documents through `num_rungs` budgets of (query vectors, planes, documents kept).
 *
 * Rungs grow; the last keeps all that reach it. `rows` is changed: it and `scores` begin with what
 * is left, whose number `entered[num_rungs]` is; `entered` and `ms` tell of each rung how many came
 * and what it took. `keys` are all documents', different ones. Returns 0, 1 without memory, 2 for a
 * path that is not there.
 */
int maxsim_int8_5_climb(const char *name, const int8_t *query, const float *query_scales, int dim,
                        const struct plane *planes, const int64_t *rungs, int num_rungs,
                        const uint64_t *keys, int64_t *rows, int64_t count, float *scores,
                        int64_t *entered, double *ms) {
    const struct path *path = find_path(name);
    if (!path) return 2;
    const int stride = (int)rungs[3 * (num_rungs - 1)];
    float *best = malloc((count * stride + 1) * sizeof(float));
    if (!best) return 1;
    for (int64_t i = 0; i < count * stride; i++) best[i] = -INFINITY;
    struct climb at = {path, query, query_scales, dim, stride, planes, rows, count, best, scores};
    int read = 0, status = 0;
    int64_t planes_read = 0;
    for (int k = 0; !status && k < num_rungs; k++) {
        const int r_q = (int)rungs[3 * k];
        const int64_t num_planes = rungs[3 * k + 1];
        const double started = now_ms();
        entered[k] = at.count;
        /* new query vectors meet the old planes, all of them the new ones */
        status = raise_by(&at, read, r_q, 0, planes_read) || raise_by(&at, 0, r_q, planes_read, num_planes);
        read = r_q;
        planes_read = num_planes;
        if (!status) mean_of_rows(best, stride, at.count, query_scales, r_q, scores);
        if (!status && k + 1 < num_rungs) status = cut(&at, keys, rungs[3 * k + 2]);
        ms[k] = now_ms() - started;
    }
    entered[num_rungs] = at.count;
    free(best);
    return status;
}
