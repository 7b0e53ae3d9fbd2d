/* SPDX-License-Identifier: Apache-2.0
 *
 * Checks of dq on rows, of dk and dv on whole key blocks, and of the key convolution's dk and dw.
 */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli/progress.h"
#include "cli/tensor_file.h"
#include "cli/verify_internal.h"

/** Multiply-adds for which the rows of sampled key blocks are recomputed from all their keys. A few seconds. */
#define EXACT_WORK 4.0e9

enum { DQ_ROWS = 64, KEY_BLOCKS = 8 };

static double gradient_bound(moba_dtype dtype) {
    static const double bounds[] = {[MOBA_F32] = 1e-5, [MOBA_F16] = 1e-3, [MOBA_BF16] = 6e-3};
    return bounds[dtype];
}

/** One block of keys of one kv head. */
typedef struct key_block {
    int32_t g;
    int64_t b, j;
} key_block;

/** The state of one gradient check. */
typedef struct gradient_check {
    const mobai_reference *reference;
    const mobai_bench_outputs *outputs;
    mobai_row *row;
    mobai_comparison dk, dv;
    mobai_key_gradients keys, next; /* a block, and the first keys after it that the convolution reaches */
    double *raw;                    /* dk of the raw keys */
    float *plain_raw, *got;
    double *dw; /* [n_kv_heads][dim][width] in float64 and plain, summed over the blocks that were visited */
    double *plain_dw;
    double max_score;
    bool exact;
} gradient_check;

static bool open_check(gradient_check *check, mobai_message *message) {
    const mobai_bench_problem *problem = check->reference->problem;
    const int64_t block = mobai_reference_block_size(check->reference);
    const int64_t width = problem->kconv_width;
    const size_t n = (size_t)block * (size_t)check->reference->dim;
    const size_t n_weights =
        (size_t)problem->n_kv_heads * (size_t)check->reference->dim * (size_t)(width > 0 ? width : 1);
    const bool keys = mobai_key_gradients_open(check->reference, block, &check->keys);
    const bool next = mobai_key_gradients_open(check->reference, width, &check->next);
    check->raw = malloc(n * sizeof *check->raw);
    check->plain_raw = malloc(n * sizeof *check->plain_raw);
    check->got = malloc(n * sizeof *check->got);
    check->dw = calloc(n_weights, sizeof *check->dw);
    check->plain_dw = calloc(n_weights, sizeof *check->plain_dw);
    if (keys && next && check->raw != NULL && check->plain_raw != NULL && check->got != NULL && check->dw != NULL &&
        check->plain_dw != NULL) {
        return true;
    }
    return mobai_say_memory(message, "out of memory for the gradients of %" PRId64 " keys", block);
}

static void close_check(gradient_check *check) {
    mobai_key_gradients_close(&check->keys);
    mobai_key_gradients_close(&check->next);
    free(check->raw);
    free(check->plain_raw);
    free(check->got);
    free(check->dw);
    free(check->plain_dw);
}

/** Weight w[g][c][l] as float64. */
static double weight(const mobai_reference *reference, int32_t g, int32_t c, int32_t l) {
    const size_t width = (size_t)reference->problem->kconv_width;
    const mobai_element element = (mobai_element)reference->problem->dtype;
    const size_t at = ((size_t)g * (size_t)reference->dim + (size_t)c) * width + (size_t)l;
    float value = 0.0f;
    mobai_convert(&value, MOBAI_ELEMENT_F32,
                  (const char *)reference->in->kconv_weight + at * mobai_element_bytes(element), element, 1);
    return (double)value;
}

/** dk' of key x of the block or of the keys after it. */
static void dkprime_at(const gradient_check *check, int64_t x, const double **dk, const float **plain) {
    const mobai_key_gradients *from = x < check->keys.end ? &check->keys : &check->next;
    const size_t at = (size_t)(x - from->begin) * (size_t)check->reference->dim;
    *dk = from->dk + at;
    *plain = from->plain_dk + at;
}

/** Back through the convolution: dk[t] = dk'[t] + sum_l w[l] SiLU'(z[t + l]) dk'[t + l], and the block's part of dw. */
static void through_kconv(gradient_check *check, int64_t seqlen_k) {
    const mobai_reference *reference = check->reference;
    const mobai_bench_problem *problem = reference->problem;
    const int32_t dim = reference->dim, width = problem->kconv_width;
    const int32_t g = check->keys.g;
    const int64_t b = check->keys.b, begin = check->keys.begin, end = check->keys.end;
    const size_t n = (size_t)(end - begin) * (size_t)dim;
    memcpy(check->raw, check->keys.dk, n * sizeof *check->raw);
    memcpy(check->plain_raw, check->keys.plain_dk, n * sizeof *check->plain_raw);
    double slope[256];
    float key[256];
    for (int64_t y = begin; y < end + width - 1 && y < seqlen_k; y++) {
        const double *dk = NULL;
        const float *plain = NULL;
        dkprime_at(check, y, &dk, &plain);
        mobai_kconv_slope(reference, b, g, y, slope);
        for (int32_t l = 0; l < width && l <= y; l++) {
            const int64_t x = y - l;
            mobai_load_row(reference, reference->in->k, problem->n_kv_heads, reference->k_begin[b] + x, g, key);
            for (int32_t c = 0; c < dim; c++) {
                const double back = slope[c] * dk[c];
                const float plain_back = (float)slope[c] * plain[c];
                if (x >= begin && x < end) {
                    const size_t at = (size_t)(x - begin) * (size_t)dim + (size_t)c;
                    check->raw[at] += weight(reference, g, c, l) * back;
                    check->plain_raw[at] += (float)weight(reference, g, c, l) * plain_back;
                }
                if (y < end) {
                    const size_t at = ((size_t)g * (size_t)dim + (size_t)c) * (size_t)width + (size_t)l;
                    check->dw[at] += back * (double)key[c];
                    check->plain_dw[at] += (double)(plain_back * key[c]);
                }
            }
        }
    }
    mobai_round_to(problem->dtype, check->plain_raw, n);
}

static void check_block(gradient_check *check, const key_block *block) {
    const mobai_reference *reference = check->reference;
    const mobai_bench_problem *problem = reference->problem;
    const int64_t n = mobai_reference_block_size(reference);
    const int64_t base = reference->k_begin[block->b];
    const int64_t seqlen_k = reference->k_begin[block->b + 1] - base;
    check->keys.b = check->next.b = block->b;
    check->keys.g = check->next.g = block->g;
    check->keys.begin = block->j * n;
    check->keys.end = check->keys.begin + n < seqlen_k ? check->keys.begin + n : seqlen_k;
    mobai_key_gradients_fill(reference, check->outputs, check->exact, check->row, &check->keys);
    if (check->keys.max_score > check->max_score) check->max_score = check->keys.max_score;
    const double *dk = check->keys.dk;
    const float *plain_dk = check->keys.plain_dk;
    if (problem->kconv_width > 0) {
        const int64_t reach = check->keys.end + problem->kconv_width - 1;
        check->next.begin = check->keys.end;
        check->next.end = reach < seqlen_k ? reach : seqlen_k;
        if (check->next.begin < check->next.end) {
            mobai_key_gradients_fill(reference, check->outputs, check->exact, check->row, &check->next);
        }
        through_kconv(check, seqlen_k);
        dk = check->raw;
        plain_dk = check->plain_raw;
    }
    for (int64_t x = check->keys.begin; x < check->keys.end; x++) {
        const size_t at = (size_t)(x - check->keys.begin) * (size_t)reference->dim;
        const int64_t r = base + x;
        mobai_load_row(reference, check->outputs->dk, problem->n_kv_heads, r, block->g, check->got);
        mobai_compare(problem->dtype, &check->dk, r, block->g, dk + at, plain_dk + at, check->got, reference->dim);
        mobai_load_row(reference, check->outputs->dv, problem->n_kv_heads, r, block->g, check->got);
        mobai_compare(problem->dtype, &check->dv, r, block->g, check->keys.dv + at, check->keys.plain_dv + at,
                      check->got, reference->dim);
    }
}

/* --------------------------------------------------------------------------------------------- sampling -- */

/** Block `index` of all, counted kv head by kv head over the sequences' blocks. */
static key_block block_at(const mobai_reference *reference, int64_t index) {
    key_block block = {(int32_t)(index / reference->n_slots), 0, index % reference->n_slots};
    while (reference->slot_begin[block.b + 1] <= block.j)
        block.b++;
    block.j -= reference->slot_begin[block.b];
    return block;
}

/** Indices of the blocks to check: all, or the first, the last, the end of a sequence, and random ones. */
static int64_t *sample_blocks(const mobai_reference *reference, bool whole, uint64_t seed, int64_t *n_blocks) {
    const mobai_bench_problem *problem = reference->problem;
    const int64_t all = reference->n_slots * problem->n_kv_heads;
    const int64_t capacity = whole || all < KEY_BLOCKS ? all : KEY_BLOCKS;
    int64_t *blocks = malloc((size_t)(capacity > 0 ? capacity : 1) * sizeof *blocks);
    if (blocks == NULL) return NULL;
    int64_t n = 0;
    if (capacity == all) {
        for (; n < all; n++)
            blocks[n] = n;
    }
    uint64_t state = seed ^ 0xb10c5eedull;
    while (n < capacity) {
        const int64_t g = (int64_t)mobai_random_below(&state, (uint64_t)problem->n_kv_heads);
        int64_t slot = (int64_t)mobai_random_below(&state, (uint64_t)reference->n_slots);
        if (n == 0) slot = 0;
        if (n == 1) slot = reference->n_slots - 1;
        if (n == 2) { /* the last block of the sequence that owns the slot */
            const key_block at = block_at(reference, slot);
            slot = reference->slot_begin[at.b + 1] - 1;
        }
        bool seen = false;
        for (int64_t i = 0; i < n; i++)
            seen = seen || blocks[i] == g * reference->n_slots + slot;
        if (!seen) {
            blocks[n++] = g * reference->n_slots + slot;
        } else if (n <= 2) {
            /* The special blocks of every head may coincide; a random one takes the place. */
            blocks[n] = (int64_t)mobai_random_below(&state, (uint64_t)all);
            seen = false;
            for (int64_t i = 0; i < n; i++)
                seen = seen || blocks[i] == blocks[n];
            n += !seen;
        }
    }
    *n_blocks = n;
    return blocks;
}

/* ------------------------------------------------------------------------------------------------ checks -- */

/** What solving back from dk gives for one kv head. */
typedef struct solved_dw {
    double dw[256][8], spread2[256][8]; /* dw, and the variance that the rounding of dk brings in, at most */
} solved_dw;

/**
 * dw of one kv head from the library's own dk, of which blocks have been verified. dk' follows by solving
 * dk[t] = dk'[t] + sum_l w[l] SiLU'(z[t + l]) dk'[t + l] from the last key back, and dw from it. dk carries a rounding
 * to the type; its effect is followed through the same recursion with absolute values.
 */
static void solve_dw(const gradient_check *check, int32_t g, solved_dw *out) {
    static const double half_ulps[] = {[MOBA_F32] = 0x1p-22, [MOBA_F16] = 0x1p-12, [MOBA_BF16] = 0x1p-9};
    const mobai_reference *reference = check->reference;
    const mobai_bench_problem *problem = reference->problem;
    const int32_t dim = reference->dim, width = problem->kconv_width;
    double slope[256], w[8][256] = {{0.0}};
    double back[8][256], error[8][256]; /* of key x at x % 8: SiLU'(z[x]) dk'[x], and how far it may be off */
    float key[256], dk[256];
    memset(out, 0, sizeof *out);
    for (int32_t l = 0; l < width; l++) {
        for (int32_t c = 0; c < dim; c++)
            w[l][c] = weight(reference, g, c, l);
    }
    for (int64_t b = 0; b < problem->batch; b++) {
        const int64_t base = reference->k_begin[b];
        const int64_t seqlen_k = reference->k_begin[b + 1] - base;
        for (int64_t x = seqlen_k - 1; x >= 0; x--) {
            mobai_kconv_slope(reference, b, g, x, slope);
            mobai_load_row(reference, check->outputs->dk, problem->n_kv_heads, base + x, g, dk);
            for (int32_t c = 0; c < dim; c++) {
                double rest = (double)dk[c], rest_error = fabs(rest) * half_ulps[problem->dtype];
                for (int32_t l = 1; l < width && x + l < seqlen_k; l++) {
                    rest -= w[l][c] * back[(x + l) % 8][c];
                    rest_error += fabs(w[l][c]) * error[(x + l) % 8][c];
                }
                const double factor = slope[c] / (1.0 + w[0][c] * slope[c]);
                back[x % 8][c] = factor * rest;
                error[x % 8][c] = fabs(factor) * rest_error;
            }
            for (int32_t l = 0; l < width && l <= x; l++) {
                mobai_load_row(reference, reference->in->k, problem->n_kv_heads, base + x - l, g, key);
                for (int32_t c = 0; c < dim; c++) {
                    const double off = error[x % 8][c] * (double)key[c];
                    out->dw[c][l] += back[x % 8][c] * (double)key[c];
                    out->spread2[c][l] += off * off;
                }
            }
        }
    }
}

/**
 * dw where dk' of all keys is out of reach: Frobenius, over the channels in which solving back loses little (weights
 * near -1 amplify the rounding of dk). False when there is no such channel.
 */
static bool check_solved_dw(const gradient_check *check, int32_t g, mobai_verdict *verdict) {
    const mobai_bench_problem *problem = check->reference->problem;
    const int32_t width = problem->kconv_width;
    const double bound = gradient_bound(problem->dtype);
    solved_dw solved;
    solve_dw(check, g, &solved);
    const float *got = check->outputs->dw + (size_t)g * (size_t)check->reference->dim * (size_t)width;
    double error2 = 0.0, expected2 = 0.0;
    for (int32_t c = 0; c < check->reference->dim; c++) {
        double channel2 = 0.0, spread2 = 0.0, off2 = 0.0;
        for (int32_t l = 0; l < width; l++) {
            const double off = (double)got[c * width + l] - solved.dw[c][l];
            channel2 += solved.dw[c][l] * solved.dw[c][l];
            spread2 += solved.spread2[c][l];
            off2 += off * off;
        }
        if (!(spread2 <= 0.25 * bound * bound * channel2)) continue;
        error2 += off2;
        expected2 += channel2;
    }
    if (!(expected2 > 0.0)) return false;
    const double relative = sqrt(error2 / expected2);
    if (relative > verdict->rel_err) verdict->rel_err = relative;
    if (!(relative <= bound)) {
        mobai_fault(verdict, "dw of kv head %" PRId32 ": relative Frobenius error %.3g is above %.3g", g, relative,
                    bound);
    }
    return true;
}

/** dw of the kv heads [begin, end), all of whose blocks have been visited. */
static void check_dw(const gradient_check *check, int32_t begin, int32_t end, mobai_verdict *verdict) {
    const mobai_reference *reference = check->reference;
    const int64_t width = reference->problem->kconv_width, dim = reference->dim;
    mobai_comparison c = {.name = "dw"};
    for (int64_t i = begin * dim * width; i < end * dim * width; i++) {
        const float plain = (float)check->plain_dw[i];
        mobai_compare(MOBA_F32, &c, i / width % dim, i / width / dim, &check->dw[i], &plain, &check->outputs->dw[i], 1);
    }
    mobai_judge(&c, gradient_bound(reference->problem->dtype), check->max_score <= 16.0, verdict);
}

/** dw of one kv head by visiting all of its blocks: the long way. */
static void check_dw_of_head(gradient_check *check, int32_t g, mobai_verdict *verdict) {
    const mobai_reference *reference = check->reference;
    const size_t n = (size_t)reference->dim * (size_t)reference->problem->kconv_width;
    memset(check->dw + (size_t)g * n, 0, n * sizeof *check->dw);
    memset(check->plain_dw + (size_t)g * n, 0, n * sizeof *check->plain_dw);
    check->exact = false;
    for (int64_t slot = 0; slot < reference->n_slots; slot++) {
        const key_block block = block_at(reference, g * reference->n_slots + slot);
        check_block(check, &block);
        mobai_progress_at((uint64_t)slot, (uint64_t)reference->n_slots);
    }
    check_dw(check, g, g + 1, verdict);
}

static void check_dq(const mobai_reference *reference, const mobai_bench_outputs *outputs, bool whole, uint64_t seed,
                     mobai_row *row, mobai_verdict *verdict) {
    const mobai_bench_problem *problem = reference->problem;
    const int64_t all = reference->in->total_q * problem->n_q_heads;
    const int64_t n = whole || all < DQ_ROWS ? all : DQ_ROWS;
    mobai_comparison c = {.name = "dq"};
    uint64_t state = seed ^ 0xd95eedull;
    float got[256];
    double max_score = 0.0;
    for (int64_t i = 0; i < n; i++) {
        /* Sampled: one row of each of 64 equal parts, so that the first and the last rows' neighbourhoods are in. */
        int64_t r = i;
        if (n < all) {
            const int64_t begin = all / n * i, end = i + 1 == n ? all : all / n * (i + 1);
            r = i == 0       ? 0
                : i + 1 == n ? all - 1
                             : begin + (int64_t)mobai_random_below(&state, (uint64_t)(end - begin));
        }
        const int64_t t = r / problem->n_q_heads;
        const int32_t h = (int32_t)(r % problem->n_q_heads);
        mobai_row_forward(reference, outputs, t, h, row);
        mobai_row_backward(reference, row);
        if (row->max_score > max_score) max_score = row->max_score;
        mobai_load_row(reference, outputs->dq, problem->n_q_heads, t, h, got);
        mobai_compare(problem->dtype, &c, t, h, row->dq, row->plain_dq, got, reference->dim);
    }
    verdict->n_rows = n;
    mobai_judge(&c, gradient_bound(problem->dtype), max_score <= 16.0, verdict);
}

bool mobai_verify_gradients(const mobai_reference *reference, const mobai_bench_outputs *outputs, uint64_t seed,
                            mobai_row *row, mobai_verdict *verdict, mobai_message *message) {
    const mobai_bench_problem *problem = reference->problem;
    /* A whole check visits every (row, chosen block) and recomputes the row for it. */
    const double rows = (double)reference->in->total_q * (double)problem->n_q_heads;
    const double picks = (double)row->capacity / mobai_reference_block_size(reference) + 1.0;
    const bool whole = rows * picks * (double)row->capacity * reference->dim * 4.0 <= MOBAI_WHOLE_CHECK_WORK;
    check_dq(reference, outputs, whole, seed, row, verdict);

    gradient_check check = {.reference = reference, .outputs = outputs, .row = row};
    check.dk.name = "dk";
    check.dv.name = "dv";
    int64_t n_blocks = 0;
    int64_t *blocks = sample_blocks(reference, whole, seed, &n_blocks);
    const bool good = open_check(&check, message) && (blocks != NULL || mobai_say_memory(message, "out of memory"));
    if (good) {
        double work = 0.0;
        for (int64_t i = 0; i < n_blocks && !whole; i++) {
            const key_block block = block_at(reference, blocks[i]);
            const int64_t n_rows =
                mobai_key_rows(reference, outputs, block.b, block.g, block.j * mobai_reference_block_size(reference));
            work += (double)n_rows * (double)row->capacity * reference->dim * 4.0;
        }
        check.exact = work <= EXACT_WORK;
        for (int64_t i = 0; i < n_blocks; i++) {
            const key_block block = block_at(reference, blocks[i]);
            check_block(&check, &block);
            mobai_progress_at((uint64_t)i + 1, (uint64_t)n_blocks);
        }
        verdict->n_blocks = n_blocks;
        mobai_judge(&check.dk, gradient_bound(problem->dtype), check.max_score <= 16.0, verdict);
        mobai_judge(&check.dv, gradient_bound(problem->dtype), check.max_score <= 16.0, verdict);
        if (problem->kconv_width > 0) {
            if (n_blocks == reference->n_slots * problem->n_kv_heads) {
                check_dw(&check, 0, problem->n_kv_heads, verdict);
            } else {
                uint64_t state = seed ^ 0xd3ull;
                const int32_t g = (int32_t)mobai_random_below(&state, (uint64_t)problem->n_kv_heads);
                if (!check_solved_dw(&check, g, verdict)) check_dw_of_head(&check, g, verdict);
            }
        }
    }
    free(blocks);
    close_check(&check);
    return good;
}
