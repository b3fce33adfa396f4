/* Query vectors made ready for scoring: rounded to the grid of exact.py and coded as quantisation.py
 * says, with the lengths that bound what a code can be off.
 */
#include "_maxsim.h"

#include <math.h>

/* never below what was added up in double: 2**-40 covers the sums, nextafter the rounding */
static float rounded_up(double value) {
    return nextafterf((float)(value * (1 + 0x1p-40)), INFINITY);
}

/* rint and rintf without a call: adding a number so large leaves no bits for a fraction. Any number
 * that is larger is not of a vector of unit norm, and its norm says so. */
static inline double nearest(double value) { return (value + 0x1.8p52) - 0x1.8p52; }
static inline float nearest_code(float value) { return (value + 0x1.8p23f) - 0x1.8p23f; }

/* Codes `count` float32 vectors; one that is not finite is left alone but for its norm.
 *
 * `grid` is (count, dim) double, `codes` (count, dim), `scales`, `errors` and `norms` (count).
 */
void maxsim_int8_5_code(const float *vectors, int64_t count, int dim, double *grid, int8_t *codes,
                        float *scales, float *errors, float *norms) {
    for (int64_t v = 0; v < count; v++, vectors += dim, grid += dim, codes += dim) {
        double length = 0, squares = 0, left = 0;
        float largest = 0;
        for (int d = 0; d < dim; d++) {
            grid[d] = nearest((double)vectors[d] * 0x1p24) * 0x1p-24;
            length += grid[d] * grid[d];
            const float size = fabsf((float)grid[d]);
            largest = size > largest ? size : largest;
        }
        norms[v] = rounded_up(sqrt(length));
        if (!isfinite(length)) continue;
        const float step = largest > 0 ? 127.0f / largest : 0.0f;
        for (int d = 0; d < dim; d++) {
            const float code = nearest_code((float)grid[d] * step);
            codes[d] = (int8_t)code;
            squares += (double)code * code;
        }
        /* of an integer that float32 holds, as in quantisation.py */
        scales[v] = squares > 0 ? 1.0f / sqrtf((float)squares) : 0.0f;
        for (int d = 0; d < dim; d++) {
            const double off = grid[d] - codes[d] * (double)scales[v];
            left += off * off;
        }
        errors[v] = rounded_up(sqrt(left));
    }
}
