/* SPDX-License-Identifier: Apache-2.0
 *
 * Problem strings and test data.
 */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "harness.h"

/* ------------------------------------------------------------------------------------------- random data -- */

static uint64_t next_random(th_random *r) { /* splitmix64 */
    uint64_t z = (r->state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

double th_uniform(th_random *r) { return (double)(next_random(r) >> 11) * 0x1p-53; }

double th_normal(th_random *r) {
    double u = 1 - th_uniform(r);
    return sqrt(-2 * log(u)) * cos(6.283185307179586 * th_uniform(r));
}

int64_t th_integer(th_random *r, int64_t low, int64_t high) {
    return low + (int64_t)(next_random(r) % (uint64_t)(high - low + 1));
}

/* ------------------------------------------------------------------------------------------------ parser -- */

static const char *take_number(const char *at, char letter, int64_t *out) {
    char *end = NULL;
    if (*at != letter) th_fatal("problem string: '%c' expected at '%s'", letter, at);
    *out = strtoll(at + 1, &end, 10);
    return end;
}

static void parse_lengths(th_case *c, const char *text) {
    ref_shape *s = &c->shape;
    for (int side = 0; side < 2; side++) {
        int32_t *cu = side == 0 ? c->cu_q : c->cu_k;
        cu[0] = 0;
        for (int64_t b = 0; b < s->batch; b++) {
            char *end = NULL;
            long length = strtol(text, &end, 10);
            char expected = b + 1 < s->batch ? '+' : side == 0 ? '/' : '\0';
            if (*end != expected) th_fatal("%s: bad lens at '%s'", c->text, text);
            cu[b + 1] = cu[b] + (int32_t)length;
            text = end + 1;
        }
    }
    c->use_cu = true;
}

static void parse_option(th_case *c, const char *option, int64_t *tail) {
    static const char *const layouts[] = {"thd", "bshd", "bhsd", "sliced", "fused"};
    static const char *const fills[] = {"normal",        "integer",   "equal",    "zero",    "huge",
                                        "very_negative", "zero_rows", "nan_keys", "inf_keys"};
    moba_problem *p = &c->problem;
    bool known = false;
    if (strcmp(option, "f32") == 0) p->dtype = MOBA_F32, known = true;
    if (strcmp(option, "f16") == 0) p->dtype = MOBA_F16, known = true;
    if (strcmp(option, "bf16") == 0) p->dtype = MOBA_BF16, known = true;
    if (strcmp(option, "dense") == 0) p->dense = 1, known = true;
    if (strcmp(option, "det") == 0) p->deterministic = 1, known = true;
    if (strncmp(option, "sink=", 5) == 0) p->n_sink_blocks = atoi(option + 5), known = true;
    if (strncmp(option, "local=", 6) == 0) p->n_local_blocks = atoi(option + 6), known = true;
    if (strncmp(option, "kconv=", 6) == 0) p->kconv_width = atoi(option + 6), known = true;
    if (strncmp(option, "lens=", 5) == 0) parse_lengths(c, option + 5), known = true;
    if (strcmp(option, "cu") == 0) c->use_cu = true, known = true;
    if (strncmp(option, "tail=", 5) == 0) *tail = atoi(option + 5), c->use_cu = true, known = true;
    if (strncmp(option, "scale=", 6) == 0) p->softmax_scale = strtof(option + 6, NULL), known = true;
    if (strncmp(option, "limit=", 6) == 0) p->workspace_limit = strtoull(option + 6, NULL, 10), known = true;
    for (size_t i = 0; strncmp(option, "layout=", 7) == 0 && i < sizeof layouts / sizeof *layouts; i++)
        if (strcmp(option + 7, layouts[i]) == 0) c->layout = (th_layout)i, known = true;
    for (size_t i = 0; strncmp(option, "fill=", 5) == 0 && i < sizeof fills / sizeof *fills; i++)
        if (strcmp(option + 5, fills[i]) == 0) c->fill = (th_fill)i, known = true;
    if (!known) th_fatal("%s: unknown option '%s'", c->text, option);
}

static void parse(th_case *c) {
    moba_problem p = MOBA_PROBLEM_INIT;
    int64_t q_length, k_length, heads, kv_heads, head_dim, block_size, top_k, tail = 0;
    const char *at = c->text;
    at = take_number(at, 'b', &c->shape.batch);
    at = take_number(at, 'q', &q_length);
    at = take_number(at, 'k', &k_length);
    at = take_number(at, 'h', &heads);
    at = take_number(at, 'g', &kv_heads);
    at = take_number(at, 'd', &head_dim);
    at = take_number(at, 'B', &block_size);
    at = take_number(at, 't', &top_k);
    if (*at != 'c' && *at != 'n') th_fatal("%s: 'c' or 'n' expected", c->text);
    p.causal = *at == 'c';
    p.n_q_heads = (int32_t)heads;
    p.n_kv_heads = (int32_t)kv_heads;
    p.head_dim = (int32_t)head_dim;
    p.block_size = (int32_t)block_size;
    p.top_k = (int32_t)top_k;
    c->problem = p;
    c->cu_q = th_allocate((size_t)c->shape.batch + 1, sizeof *c->cu_q);
    c->cu_k = th_allocate((size_t)c->shape.batch + 1, sizeof *c->cu_k);
    for (int64_t b = 0; b <= c->shape.batch; b++) {
        c->cu_q[b] = (int32_t)(b * q_length);
        c->cu_k[b] = (int32_t)(b * k_length);
    }
    char rest[320];
    snprintf(rest, sizeof rest, "%s", at + 1);
    for (char *save = NULL, *item = strtok_r(rest, ",;", &save); item != NULL; item = strtok_r(NULL, ",;", &save))
        parse_option(c, item, &tail);

    ref_shape *s = &c->shape;
    int64_t longest_q = 0, longest_k = 0;
    for (int64_t b = 0; b < s->batch; b++) {
        if (c->cu_q[b + 1] - c->cu_q[b] > longest_q) longest_q = c->cu_q[b + 1] - c->cu_q[b];
        if (c->cu_k[b + 1] - c->cu_k[b] > longest_k) longest_k = c->cu_k[b + 1] - c->cu_k[b];
    }
    if (longest_q != q_length || longest_k != k_length)
        th_fatal("%s: the longest lengths are q%lld k%lld", c->text, (long long)longest_q, (long long)longest_k);
    s->cu_q = c->cu_q;
    s->cu_k = c->cu_k;
    s->total_q = c->cu_q[s->batch] + tail;
    s->total_k = c->cu_k[s->batch] + tail;
    s->dtype = (int)c->problem.dtype;
    s->n_q_heads = (int)heads;
    s->n_kv_heads = (int)kv_heads;
    s->head_dim = (int)head_dim;
    s->block_size = (int)block_size;
    s->top_k = (int)top_k;
    s->n_sink = c->problem.n_sink_blocks;
    s->n_local = c->problem.n_local_blocks;
    s->kconv_width = c->problem.kconv_width;
    s->causal = c->problem.causal != 0;
    s->dense = c->problem.dense != 0;
    s->scale =
        c->problem.softmax_scale != 0 ? (double)c->problem.softmax_scale : (double)(float)(1 / sqrt((double)head_dim));
    c->problem.max_batch = s->batch;
    c->problem.max_total_q = s->total_q > 0 ? s->total_q : 1;
    c->problem.max_total_k = s->total_k > 0 ? s->total_k : 1;
    c->problem.max_seqlen_q = longest_q;
    c->problem.max_seqlen_k = longest_k;
}

/* -------------------------------------------------------------------------------------------------- data -- */

static void normals(th_random *r, int dtype, double *x, int64_t n, double sigma) {
    for (int64_t i = 0; i < n; i++)
        x[i] = ref_round(dtype, sigma * th_normal(r));
}

/* Keys whose block means are small integers: a base vector for each block, plus pairs of deviations that cancel. */
static void integer_keys(th_case *c, th_random *r) {
    const ref_shape *s = &c->shape;
    int64_t width = (int64_t)s->n_kv_heads * s->head_dim;
    for (int64_t b = 0; b < s->batch; b++)
        for (int64_t first = s->cu_k[b]; first < s->cu_k[b + 1]; first += s->block_size) {
            int64_t end = first + s->block_size < s->cu_k[b + 1] ? first + s->block_size : s->cu_k[b + 1];
            for (int64_t x = 0; x < width; x++) {
                double base = (double)th_integer(r, -2, 2);
                for (int64_t t = first; t < end; t++)
                    c->k[t * width + x] = base;
                for (int64_t t = first; t + 1 < end; t += 2) {
                    double deviation = (double)th_integer(r, -1, 1);
                    c->k[t * width + x] += deviation;
                    c->k[(t + 1) * width + x] -= deviation;
                }
            }
        }
}

/* Puts `value` into channel 0 of one key of every fifth block, in every head. */
static void poison_keys(th_case *c, double value) {
    const ref_shape *s = &c->shape;
    for (int64_t b = 0; b < s->batch; b++)
        for (int64_t j = 1; j < ref_seq_blocks(s, b); j += 5)
            for (int64_t g = 0; g < s->n_kv_heads; g++) {
                int64_t t = s->cu_k[b] + j * s->block_size;
                c->k[(t * s->n_kv_heads + g) * s->head_dim] = value;
            }
}

void th_case_fill(th_case *c) {
    const ref_shape *s = &c->shape;
    th_random r = {c->seed * 0x2545f4914f6cdd1du + 17};
    int64_t nq = th_q_elements(c), nk = th_k_elements(c), q_width = (int64_t)s->n_q_heads * s->head_dim,
            k_width = (int64_t)s->n_kv_heads * s->head_dim;
    double range = s->dtype == REF_F16 ? 20 : 60; /* HUGE: scaled scores are about range^2 */
    normals(&r, s->dtype, c->q, nq, c->fill == TH_HUGE ? range : 1);
    normals(&r, s->dtype, c->k, nk, c->fill == TH_HUGE ? range : 1);
    normals(&r, s->dtype, c->v, nk, 1);
    normals(&r, s->dtype, c->dout, nq, 1);
    normals(&r, s->dtype, c->w, th_w_elements(c), 0.3);
    switch (c->fill) {
    case TH_NORMAL:
    case TH_HUGE:
        break;
    case TH_INTEGER:
        for (int64_t i = 0; i < nq; i++)
            c->q[i] = (double)th_integer(&r, -2, 2);
        integer_keys(c, &r);
        break;
    case TH_EQUAL: /* integers, so that the mean is exact over any number of keys */
        for (int64_t i = 0; i < k_width && i < nk; i++)
            c->k[i] = (double)th_integer(&r, -3, 3);
        for (int64_t i = k_width; i < nk; i++)
            c->k[i] = c->k[i - k_width];
        break;
    case TH_ZERO:
        for (int64_t i = 0; i < nq; i++)
            c->q[i] = i % 2 == 0 ? 0.0 : -0.0;
        for (int64_t i = 0; i < nk; i++)
            c->k[i] = i % 3 == 0 ? 0.0 : -0.0;
        break;
    case TH_VERY_NEGATIVE: /* integers, so that scores are exact however they are summed and only lse is rounded */
        for (int64_t i = 0; i < nq; i++) {
            c->q[i] = (double)(16 * th_integer(&r, 1, 3));
            c->dout[i] = (double)th_integer(&r, -3, 3);
        }
        for (int64_t i = 0; i < nk; i++) {
            c->k[i] = (double)(-16 * th_integer(&r, 1, 3));
            c->v[i] = (double)th_integer(&r, -3, 3);
        }
        break;
    case TH_ZERO_ROWS:
        for (int64_t i = 0; i < nq; i++)
            if (i / q_width % 3 == 0) c->q[i] = c->dout[i] = 0;
        for (int64_t i = 0; i < nk; i++)
            if (i / k_width % 3 == 0) c->k[i] = c->v[i] = 0;
        break;
    case TH_NAN_KEYS:
        poison_keys(c, NAN);
        break;
    case TH_INF_KEYS:
        poison_keys(c, INFINITY);
        break;
    }
}

void th_case_refresh(th_case *c) {
    const ref_shape *s = &c->shape;
    free(c->kprime);
    free(c->centroids);
    free(c->selection);
    c->kprime = th_allocate((size_t)th_k_elements(c), sizeof *c->kprime);
    ref_kconv(s, c->k, c->w, c->kprime);
    c->centroids = NULL;
    c->selection = NULL;
    if (s->dense) return;
    c->centroids = th_allocate((size_t)(ref_n_blocks(s) * s->n_kv_heads * s->head_dim), sizeof *c->centroids);
    c->selection = th_allocate((size_t)th_selection_elements(c), sizeof *c->selection);
    ref_centroids(s, c->kprime, c->centroids);
    ref_select(s, c->q, c->centroids, c->selection);
}

th_case *th_case_new(const char *text, uint64_t seed) {
    th_case *c = th_allocate(1, sizeof *c);
    if (strlen(text) >= sizeof c->problem_text) th_fatal("problem string too long: %s", text);
    snprintf(c->text, sizeof c->text, "%s", text);
    snprintf(c->problem_text, sizeof c->problem_text, "%.*s", (int)strcspn(text, ";"), text);
    c->seed = seed;
    parse(c);
    c->q = th_allocate((size_t)th_q_elements(c), sizeof *c->q);
    c->dout = th_allocate((size_t)th_q_elements(c), sizeof *c->dout);
    c->k = th_allocate((size_t)th_k_elements(c), sizeof *c->k);
    c->v = th_allocate((size_t)th_k_elements(c), sizeof *c->v);
    c->w = th_allocate((size_t)th_w_elements(c), sizeof *c->w);
    th_case_fill(c);
    th_case_refresh(c);
    return c;
}

void th_case_free(th_case *c) {
    if (c == NULL) return;
    void *owned[] = {c->cu_q, c->cu_k, c->q, c->k, c->v, c->w, c->dout, c->kprime, c->centroids, c->selection};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++)
        free(owned[i]);
    free(c);
}

void th_random_selection(const th_case *c, th_random *r, int32_t *selection) {
    const ref_shape *s = &c->shape;
    for (int64_t x = 0; x < th_selection_elements(c); x++)
        selection[x] = -1;
    for (int64_t b = 0; b < s->batch; b++)
        for (int64_t i = 0; i < s->cu_q[b + 1] - s->cu_q[b]; i++)
            for (int h = 0; h < s->n_q_heads; h++) {
                int64_t end = s->causal ? ref_own_block(s, b, i) + 1 : ref_seq_blocks(s, b);
                int64_t want = th_integer(r, 0, s->top_k), left = end;
                int32_t *row = selection + ((s->cu_q[b] + i) * s->n_q_heads + h) * s->top_k;
                for (int64_t j = 0; j < end && want > 0; j++, left--) /* sequential sampling keeps ids ascending */
                    if ((double)left * th_uniform(r) < (double)want) {
                        *row++ = (int32_t)j;
                        want--;
                    }
            }
}
