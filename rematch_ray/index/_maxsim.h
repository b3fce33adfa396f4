/* What the parts of the 8-bit MaxSim kernel share. Knows nothing of Python. */
#ifndef REMATCH_RAY_MAXSIM_H
#define REMATCH_RAY_MAXSIM_H

#include <stdint.h>

/* Document vectors scored between two folds: with 16 query vectors their scores are 3 KiB. */
#define CHUNK 48
/* Scorers work on whole blocks, at most this many vectors past the last. */
#define SLACK 16
#define GROUP_ROWS 16
#define MAX_DIM 4096
#define INLINE static inline __attribute__((always_inline))

/* Up to 16 query vectors that share a pass over the documents. */
struct group {
    int first;                 /* its first row of the query */
    int rows;                  /* rows it holds */
    int width;                 /* rows it computes: 1, 2, 4, 8 or 16 */
    void *packed;              /* codes, in the order that its path reads them */
    int32_t start[GROUP_ROWS]; /* -128 * sum(codes) per lane: documents are stored as code + 128 */
};

/* Vectors of one document, or of consecutive ones, whose scales lie side by side. */
struct run {
    int count;
    const float *scales;
};

/* Document vectors in the order of the output, padded to whole blocks by repeating the last. */
struct chunk {
    int count, num_runs;
    int64_t document; /* of the first vector */
    int position;     /* of the first vector within its document */
    const uint8_t *vectors[CHUNK + SLACK];
    struct run runs[CHUNK];
    float scales[CHUNK + SLACK]; /* copied from the runs once they are needed */
};

/* out[v][width] = scale[v] * (float)dot(vector v, row), fetching `ahead` (or NULL) on the way. */
typedef void score_fn(const struct chunk *, const struct chunk *ahead, const struct group *,
                      int dim, float *out);
/* Lays one group's rows out as score_fn wants them; `rows` is the group's first row. */
typedef void pack_fn(struct group *, const int8_t *rows, int dim);
/* best[document][row] = max(best, scores) */
typedef void fold_fn(const struct chunk *, const struct group *, const float *scores, float *best,
                     int64_t stride, int vectors_per_document);

/* Scores of documents of one vector against one query vector, its scale applied: _maxsim_single.c.
 * Returns 0 for a dimension that it is not for. */
typedef int single_fn(const uint8_t *codes, int is_packed, const float *scales, int64_t count,
                      const int8_t *query, int dim, float query_scale, float *out);

/* Appends the scores that are no less than `cut`, and their positions (`first`, `first` + 1, … where
 * those are NULL), in the order in which they stand; says how many. What they are appended to has
 * room for all, and may be where they stand: _maxsim_keep.c. */
typedef int64_t keep_fn(float cut, const float *scores, const int64_t *positions, int64_t first,
                        int64_t count, float *kept_scores, int64_t *kept_positions);
/* The `rank`-th smallest of some numbers, from 0; changes what stands there. */
typedef float nth_fn(float *values, int64_t count, int64_t rank);

/* Documents of a group of one-bit codes, and its size: _maxsim_bits.c. */
#define GROUP_DOCUMENTS 64
#define GROUP_BYTES(bytes) (GROUP_DOCUMENTS * ((int64_t)(bytes) + 2) + 8 * (int64_t)(bytes))

/* A query of one-bit codes as it is looked up. */
struct rough_query {
    int bytes;             /* of a document */
    const uint8_t *tables; /* two for each byte */
    const int8_t *centre;  /* codes beside the centres' */
    int32_t centre_start;  /* -128 * their sum */
    float centre_scale, reach_scale;
};

/* Scores of the documents of some groups. */
typedef void rough_fn(const uint8_t *groups, int64_t count, const struct rough_query *query,
                      float *scores);

struct path {
    const char *name;
    pack_fn *pack;
    score_fn *score;
    fold_fn *fold;
    single_fn *single; /* or NULL */
    keep_fn *keep;
    nth_fn *nth_smallest;
    rough_fn *rough;
};

/* What one query has kept so far: _maxsim_best.c. */
struct kept {
    const struct path *path;
    int64_t limit, count, full; /* it is cut once `full` are there */
    double slack;
    float cut; /* documents below it cannot be among the best any more */
    int64_t *positions;
    float *scores;
};

/* One plane of the documents, as Python lays it out: addresses in 64 bits. */
struct plane {
    int64_t vectors; /* of documents that lie side by side: codes, or float16 originals */
    int64_t scales;  /* (N, n) float32; 0 for originals */
    int64_t per_document;
    int64_t is_packed; /* 4-bit codes, one vector a document: see unpack_code */
};

const struct path *find_path(const char *name);
struct group *make_groups(const struct path *path, const int8_t *query, int num_rows, int dim,
                          int *num_groups);
/* Raises maxima by one plane: the operation of _maxsim.c, with the query laid out. */
void carry_plane(const struct path *path, const struct group *groups, int num_groups, int dim,
                 const uint8_t *codes, const float *scales, int vectors_per_document,
                 const int64_t *rows, int64_t count, float *best, int64_t stride);
void mean_of_rows(const float *best, int64_t stride, int64_t count, const float *scales, int r_q,
                  float *means);
/* Keeps the `limit` best of scores that come in blocks, and what is within `slack` of the last of
 * them; there is room for all. The last two return 1 without memory. */
struct kept start_keeping(const struct path *path, int64_t limit, double slack, int64_t *positions,
                          float *scores);
int keep_scores(struct kept *kept, const float *scores, int64_t first, int count,
                const uint8_t *allowed);
int cut_kept(struct kept *kept);
/* on any machine */
keep_fn keep_at_least;
nth_fn nth_smallest;
rough_fn rough_portable;

#if defined(__x86_64__) && defined(__GNUC__)
#define HAS_X86_PATHS 1
extern const struct path avx512vnni_path, avx2_path;
single_fn single_avx512;
keep_fn keep_at_least_avx512;
nth_fn nth_smallest_avx512;
rough_fn rough_avx2, rough_avx512;
#endif

/* Bytes of one vector of a plane. */
INLINE int64_t vector_bytes(const struct plane *plane, int dim) {
    return plane->is_packed ? (dim + 1) / 2 : dim;
}

/* Entry d of a packed vector as an 8-bit code, amid those whose high four bits it has: the low
 * halves of the bytes hold the first half of the vector, the high halves the rest. */
INLINE uint8_t unpack_code(const uint8_t *packed, int dim, int d) {
    const int half = (dim + 1) / 2;
    return (uint8_t)((d < half ? packed[d] << 4 : packed[d - half] & 0xf0) | 8);
}

INLINE void fold_scores(const struct chunk *chunk, const struct group *group, const float *scores,
                        float *best, int64_t stride, int vectors_per_document) {
    const int rows = group->rows, width = group->width;
    int position = chunk->position;
    float *row = best + chunk->document * stride + group->first;
    for (int v = 0; v < chunk->count; row += stride, position = 0) {
        int stop = v + vectors_per_document - position;
        if (stop > chunk->count) stop = chunk->count;
        for (; v < stop; v++)
            for (int r = 0; r < rows; r++) {
                const float score = scores[v * width + r];
                row[r] = score > row[r] ? score : row[r];
            }
    }
}

#endif
