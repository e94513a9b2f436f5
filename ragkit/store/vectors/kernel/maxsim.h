/* The MaxSim kernel: ragged items against queries, the maximum taken in registers, no score matrix.
 *
 * score(query, item) = sum over query rows of the largest dot product with any of the item's tokens.
 *
 * Every result is an int64 total, so sums are exact in any order: for codes the integer dot products, times the weights of
 * token and query row; for floats each row's maximum rounded to a multiple of 1 / per_unit. This file knows nothing of Python.
 */
#ifndef RAGKIT_MAXSIM_H
#define RAGKIT_MAXSIM_H

#include <stdint.h>

typedef enum { CODES = 0, HALVES = 1, FLOATS = 2 } Precision;

typedef struct {
    Precision precision;
    const void *values;     /* (tokens, width): uint8 codes about 128, width a multiple of 4; or float16; or float32 */
    int weighed;            /* 1: behind each row of codes stands a byte more, its weight; 0: it is 1 */
    int64_t tokens, width;
    const int64_t *offsets; /* (count + 1,): item i is tokens offsets[i] to offsets[i + 1], at least one */
    int64_t count;
} Items;

typedef struct {
    const void *rows;       /* (bounds[count], width): int8 in [-127, 127] for codes, else float32 */
    const int64_t *bounds;  /* (count + 1,): query j is rows bounds[j] to bounds[j + 1] */
    int64_t count;
    const double *per_unit; /* (count,), of each query; floats only */
    const int64_t *weights; /* (bounds[count],), of each row; codes only */
} Queries;

typedef struct { int64_t total, key; } Ranked;

/* What went wrong: NO_MEMORY, or BAD_ITEM - i for item i whose offsets do not hold. */
enum { NO_MEMORY = -1, BAD_ITEM = -2 };

typedef struct Path Path;

const Path *maxsim_path(int place);         /* 0, 1, ...: what this machine runs, best first; NULL after the last */
const char *maxsim_path_name(const Path *path);

/* The best k of items [start, stop): best (queries, k), by total, ties by the smaller key. allowed: (items,) bytes or NULL.
 * Returns how many each query got, the same for all, or an error. */
int64_t maxsim_scan(const Path *path, const Items *items, const Queries *queries, const int64_t *keys, const uint8_t *allowed,
                    int64_t start, int64_t stop, int64_t k, Ranked *best);

/* All totals of chosen items, which exist: totals (queries, count). Returns 0 or an error. */
int64_t maxsim_totals(const Path *path, const Items *items, const Queries *queries, const int64_t *positions, int64_t count,
                      int64_t *totals);

/* Rotate rows and round them to codes. values (rows, dims); signs (3, dims) of -1 and 1; codes (rows, width), or (rows,
 * width + 1) where `weighed`: then each row's step is a multiple of `step`, and the last byte says which. worst[0], worst[1]: the largest squared length of what rounding lost, and of a row. Returns 0, NO_MEMORY, or BAD_ITEM - i
 * for a row that is not finite. */
int64_t maxsim_quantise(const float *values, int64_t rows, int64_t dims, int64_t width, const float *signs, float step,
                        int weighed, uint8_t *codes, double worst[2]);

/* Fewer tokens for every item: of each RUN of its tokens (the last may be shorter) one for every `factor`, 1 to RUN. Seeds are chosen far
 * from each other, each token joins the seed it is nearest to, and what stands for them is their mean, as long as the longest
 * (Gonzalez 1985). codes (tokens, width + 1) with weights, about 128; offsets (count + 1,), items as in Items; fewer: room for
 * the rows of all items, (., width + 1). Returns 0 or an error. */
enum { RUN = 2048 }; /* as in quantise.py; sums of so many unit rows, squared, are exact in doubles */

int64_t maxsim_thin(const uint8_t *codes, int64_t tokens, int64_t width, const int64_t *offsets, int64_t count, int64_t factor,
                    uint8_t *fewer);

/* Multiply and add in registers alone, `rounds` times: the most this core can do. Returns the operations done (a product and
 * a sum are two), 0 where the path has no such loop. */
int64_t maxsim_spin(const Path *path, int64_t rounds);

#endif
