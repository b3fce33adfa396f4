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

static const struct path portable_path = {
    "c",  pack_portable, score_portable, fold_portable,
    NULL, keep_at_least, nth_smallest,   rough_portable};

const struct path *find_path(const char *name) {
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

/* Adds vectors that follow each other; their scales are fetched, not waited for. */
static inline void add_run(struct chunk *chunk, const struct cursor *at, int64_t first, int count) {
    const uint8_t *codes = at->codes + first * at->dim, **vectors = chunk->vectors + chunk->count;
    const float *scales = at->scales + first;
    const int64_t dim = at->dim;
    /* in fours, into the slack: most runs are short */
    for (int i = 0; i < count; i += 4, codes += 4 * dim) {
        vectors[i] = codes;
        vectors[i + 1] = codes + dim;
        vectors[i + 2] = codes + 2 * dim;
        vectors[i + 3] = codes + 3 * dim;
    }
    for (int i = 0; i < count; i += 16) __builtin_prefetch(scales + i);
    chunk->runs[chunk->num_runs++] = (struct run){count, scales};
    chunk->count += count;
}

/* The next documents of one vector each. */
static void add_singles(struct chunk *chunk, const struct cursor *at, int count) {
    const int64_t *rows = at->rows + at->document, dim = at->dim;
    for (int i = 0; i < count; i++) {
        chunk->vectors[i] = at->codes + rows[i] * dim;
        __builtin_prefetch(at->scales + rows[i]);
    }
    chunk->count = count;
}

/* Takes the next vectors: one run of all documents in order, or a run for each chosen one. */
static void fill(struct chunk *chunk, struct cursor *at) {
    const int n = at->vectors_per_document;
    chunk->count = chunk->num_runs = 0;
    chunk->document = at->document;
    chunk->position = at->position;
    if (at->rows && n == 1) {
        const int64_t left = at->count - at->document;
        add_singles(chunk, at, left < CHUNK ? (int)left : CHUNK);
        at->document += chunk->count;
    } else if (!at->rows) {
        const int64_t first = at->document * n + at->position, left = at->count * n - first;
        add_run(chunk, at, first, left < CHUNK ? (int)left : CHUNK);
        at->document = (first + chunk->count) / n;
        at->position = (first + chunk->count) % n;
    }
    while (at->rows && chunk->count < CHUNK && at->document < at->count) {
        const int left = n - at->position, room = CHUNK - chunk->count;
        const int take = left < room ? left : room;
        add_run(chunk, at, at->rows[at->document] * n + at->position, take);
        at->position += take;
        if (at->position == n) at->position = 0, at->document++;
    }
    const int count = chunk->count;
    for (int i = 0; count && i < SLACK; i++) chunk->vectors[count + i] = chunk->vectors[count - 1];
}

static void read_scales(struct chunk *chunk, const struct cursor *at) {
    float *scales = chunk->scales;
    for (int i = 0; !chunk->num_runs && i < chunk->count; i++)
        *scales++ = at->scales[at->rows[chunk->document + i]];
    for (const struct run *run = chunk->runs; run < chunk->runs + chunk->num_runs; run++)
        for (int i = 0; i < run->count; i++) *scales++ = run->scales[i];
    memset(scales, 0, SLACK * sizeof(float));
}

/* Rows that a group starting with `left` rows to go computes. */
static int width_for(int left) {
    int width = GROUP_ROWS;
    while (width > 1 && width / 2 >= left) width /= 2;
    return width;
}

struct group *make_groups(const struct path *path, const int8_t *query, int num_rows, int dim,
                          int *num_groups) {
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

void carry_plane(const struct path *path, const struct group *groups, int num_groups, int dim,
                 const uint8_t *codes, const float *scales, int vectors_per_document,
                 const int64_t *rows, int64_t count, float *best, int64_t stride) {
    struct cursor cursor = {codes, scales, rows, count, vectors_per_document, dim, 0, 0};
    struct chunk chunks[2];
    float scores[(CHUNK + SLACK) * GROUP_ROWS];
    struct chunk *now = chunks, *next = chunks + 1;
    fill(now, &cursor);
    while (now->count) {
        fill(next, &cursor);
        read_scales(now, &cursor);
        for (int g = 0; g < num_groups; g++) {
            const struct chunk *ahead = g || !next->count ? NULL : next;
            path->score(now, ahead, groups + g, dim, scores);
            path->fold(now, groups + g, scores, best, stride, vectors_per_document);
        }
        struct chunk *done = now;
        now = next;
        next = done;
    }
}

void mean_of_rows(const float *best, int64_t stride, int64_t count, const float *scales, int r_q,
                  float *means) {
    /* the same without a division; 0 + x, since the sum below has no negative zero */
    if (r_q == 1)
        for (int64_t c = 0; c < count; c++) means[c] = 0.0f + best[c * stride] * scales[0];
    for (int64_t c = 0; r_q > 1 && c < count; c++) {
        double total = 0;
        for (int i = 0; i < r_q; i++) total += best[c * stride + i] * scales[i];
        means[c] = (float)(total / r_q);
    }
}

/* Whether this machine can run a path. */
int maxsim_int8_5_has(const char *name) { return find_path(name) != NULL; }

/* The operation of this file; returns 0, 1 without memory, 2 for a path that is not there. */
int maxsim_int8_5_carry(const char *name, const int8_t *query, int num_rows, int dim,
                        const uint8_t *codes, const float *scales, int vectors_per_document,
                        const int64_t *rows, int64_t count, float *best, int64_t stride) {
    const struct path *path = find_path(name);
    if (!path) return 2;
    int num_groups;
    struct group *groups = make_groups(path, query, num_rows, dim, &num_groups);
    if (!groups) return 1;
    carry_plane(path, groups, num_groups, dim, codes, scales, vectors_per_document, rows, count,
                best, stride);
    free(groups);
    return 0;
}

/* means[c] = (sum over i < r_q of (float)(best[c][i] * scales[i])) / r_q, added in order. */
void maxsim_int8_5_mean(const float *best, int64_t stride, int64_t count, const float *scales,
                        int r_q, float *means) {
    mean_of_rows(best, stride, count, scales, r_q, means);
}
