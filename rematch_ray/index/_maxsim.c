/* 8-bit MaxSim with carried maxima: the pass over the documents, and the path for any machine.
 *
 * best[c][i] = max(best[c][i], max over j of (float)dot(query i, document c's vector j) * scale),
 * where a dot product is an exact int32 and the product is one float32 operation, so that every
 * path, order and number of threads gives the same bits. Documents are stored as code + 128.
 * Loaded by ctypes: no Python, no state, no I/O. maxsim_int8.py checks what it is given.
 */
#include "_maxsim.h"

#include <stdlib.h>
#include <string.h>

/* Where the pass over the documents stands. */
struct cursor {
    const uint8_t *codes;
    const float *scales;
    const int64_t *rows; /* documents to score, or NULL for all in order */
    int64_t count;
    int vectors_per_document, dim;
    int64_t document; /* next, as a position in rows */
    int position;     /* next, within that document */
};

static void pack_portable(struct group *group, const int8_t *rows, int dim) {
    int16_t *packed = group->packed;
    for (int i = 0; i < group->rows * dim; i++) packed[i] = rows[i];
}

static void score_portable(const struct chunk *chunk, const struct chunk *ahead,
                           const struct group *group, int dim, float *out) {
    (void)ahead;
    for (int v = 0; v < chunk->count; v++)
        for (int r = 0; r < group->rows; r++) {
            const uint8_t *vector = chunk->vectors[v];
            const int16_t *query = (const int16_t *)group->packed + (int64_t)r * dim;
            int32_t dot = group->start[r];
            for (int d = 0; d < dim; d++) dot += (int16_t)vector[d] * query[d];
            out[v * group->width + r] = (float)dot * chunk->scales[v];
        }
}

static void fold_portable(const struct chunk *chunk, const struct group *group, const float *scores,
                          float *best, int64_t stride, int vectors_per_document) {
    fold_scores(chunk, group, scores, best, stride, vectors_per_document);
}

static const struct path portable_path = {"c", pack_portable, score_portable, fold_portable};

static const struct path *find_path(const char *name) {
#ifdef HAS_X86_PATHS
    __builtin_cpu_init();
    if (!strcmp(name, avx512vnni_path.name))
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                       __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                       __builtin_cpu_supports("avx512vnni")
                   ? &avx512vnni_path
                   : NULL;
    if (!strcmp(name, avx2_path.name)) return __builtin_cpu_supports("avx2") ? &avx2_path : NULL;
#endif
    return strcmp(name, portable_path.name) ? NULL : &portable_path;
}

/* The next vectors of consecutive documents. */
static int fill_in_order(struct chunk *chunk, struct cursor *at) {
    const int64_t first = at->document * at->vectors_per_document + at->position;
    const int64_t left = at->count * at->vectors_per_document - first;
    const int count = left < CHUNK ? (int)left : CHUNK;
    const uint8_t *codes = at->codes + first * at->dim;
    for (int i = 0; i < count; i++) chunk->vectors[i] = codes + (int64_t)i * at->dim;
    chunk->scale_run = at->scales + first;
    at->document = (first + count) / at->vectors_per_document;
    at->position = (first + count) % at->vectors_per_document;
    return count;
}

/* The next vectors of chosen documents; their scales are fetched, not waited for. */
static int fill_by_rows(struct chunk *chunk, struct cursor *at) {
    const int n = at->vectors_per_document, dim = at->dim;
    int count = 0;
    chunk->scale_run = NULL;
    while (count < CHUNK && at->document < at->count) {
        const int64_t first = at->rows[at->document] * n + at->position;
        const int take = n - at->position < CHUNK - count ? n - at->position : CHUNK - count;
        const uint8_t *codes = at->codes + first * dim;
        const float *scales = at->scales + first;
        for (int i = 0; i < take; i++, count++) {
            chunk->vectors[count] = codes + (int64_t)i * dim;
            chunk->scale_places[count] = scales + i;
            if (i % 16 == 0) __builtin_prefetch(scales + i);
        }
        at->position += take;
        if (at->position == n) at->position = 0, at->document++;
    }
    return count;
}

static void fill(struct chunk *chunk, struct cursor *at) {
    chunk->document = at->document;
    chunk->position = at->position;
    const int count = at->rows ? fill_by_rows(chunk, at) : fill_in_order(chunk, at);
    chunk->count = count;
    for (int i = 0; count && i < SLACK; i++) chunk->vectors[count + i] = chunk->vectors[count - 1];
}

static void read_scales(struct chunk *chunk) {
    if (chunk->scale_run)
        memcpy(chunk->scales, chunk->scale_run, chunk->count * sizeof(float));
    else
        for (int i = 0; i < chunk->count; i++) chunk->scales[i] = *chunk->scale_places[i];
    memset(chunk->scales + chunk->count, 0, SLACK * sizeof(float));
}

/* Rows that a group starting with `left` rows to go computes. */
static int width_for(int left) {
    int width = GROUP_ROWS;
    while (width > 1 && width / 2 >= left) width /= 2;
    return width;
}

static struct group *make_groups(const struct path *path, const int8_t *query, int num_rows,
                                 int dim, int *num_groups) {
    /* enough for any path: 16 rows of int16, dims rounded up */
    const size_t bytes = 2 * GROUP_ROWS * (size_t)((dim + 63) / 64 * 64);
    const int most = (num_rows + GROUP_ROWS - 1) / GROUP_ROWS;
    struct group *groups = calloc(1, most * (sizeof(struct group) + bytes) + 64);
    if (!groups) return NULL;
    char *packed = (char *)(((uintptr_t)(groups + most) + 63) & ~(uintptr_t)63);
    *num_groups = most;
    for (int g = 0; g < most; g++) {
        struct group *group = groups + g;
        int left = num_rows - g * GROUP_ROWS;
        group->first = g * GROUP_ROWS;
        group->rows = left < GROUP_ROWS ? left : GROUP_ROWS;
        group->width = width_for(left);
        group->packed = packed + g * bytes;
        const int8_t *rows = query + (int64_t)group->first * dim;
        for (int r = 0; r < group->rows; r++)
            for (int d = 0; d < dim; d++) group->start[r] -= 128 * rows[(int64_t)r * dim + d];
        path->pack(group, rows, dim);
    }
    return groups;
}

/* Whether this machine can run a path. */
int maxsim_int8_1_has(const char *name) { return find_path(name) != NULL; }

/* The operation of this file; returns 0, 1 without memory, 2 for a path that is not there. */
int maxsim_int8_1_carry(const char *name, const int8_t *query, int num_rows, int dim,
                        const uint8_t *codes, const float *scales, int vectors_per_document,
                        const int64_t *rows, int64_t count, float *best, int64_t stride) {
    const struct path *path = find_path(name);
    if (!path) return 2;
    int num_groups;
    struct group *groups = make_groups(path, query, num_rows, dim, &num_groups);
    if (!groups) return 1;
    struct cursor cursor = {codes, scales, rows, count, vectors_per_document, dim, 0, 0};
    struct chunk chunks[2];
    float scores[(CHUNK + SLACK) * GROUP_ROWS];
    struct chunk *now = chunks, *next = chunks + 1;
    fill(now, &cursor);
    while (now->count) {
        fill(next, &cursor);
        read_scales(now);
        for (int g = 0; g < num_groups; g++) {
            const struct chunk *ahead = g || !next->count ? NULL : next;
            path->score(now, ahead, groups + g, dim, scores);
            path->fold(now, groups + g, scores, best, stride, vectors_per_document);
        }
        struct chunk *done = now;
        now = next;
        next = done;
    }
    free(groups);
    return 0;
}

/* means[c] = (sum over i < r_q of (float)(best[c][i] * scales[i])) / r_q, added in order. */
void maxsim_int8_1_mean(const float *best, int64_t stride, int64_t count, const float *scales,
                        int r_q, float *means) {
    for (int64_t c = 0; c < count; c++) {
        double total = 0;
        for (int i = 0; i < r_q; i++) total += best[c * stride + i] * scales[i];
        means[c] = (float)(total / r_q);
    }
}
