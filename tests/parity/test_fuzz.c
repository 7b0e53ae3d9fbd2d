/* SPDX-License-Identifier: Apache-2.0
 *
 * Fuzz fills through forward and backward, and problems drawn at random from the whole space of spec.md section 8.
 * MOBA_TEST_SEED picks other problems and other data.
 */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "harness.h"

#define COUNT(x) (sizeof(x) / sizeof *(x))

/* Routing by the library itself; attention and gradients judged over what it selected. */
static void check_all(const th_session *sessions, size_t n, const th_case *c) {
    bool poisoned = c->fill == TH_NAN_KEYS || c->fill == TH_INF_KEYS;
    th_expected *x = NULL;
    int32_t *x_selection = NULL;
    for (size_t i = 0; i < n; i++) {
        th_result r;
        th_exec *e = th_open(&sessions[i], c, NULL);
        if (e != NULL && th_run(e, TH_FORWARD | TH_BACKWARD, NULL, &r)) {
            size_t bytes = (size_t)th_selection_elements(c) * sizeof *r.selection;
            if (x == NULL || (!c->shape.dense && memcmp(x_selection, r.selection, bytes) != 0)) {
                th_expected_free(x);
                x = th_expect(c, r.selection, true);
                free(x_selection);
                x_selection = th_allocate(bytes, 1);
                if (!c->shape.dense) memcpy(x_selection, r.selection, bytes);
            }
            th_check_forward(&sessions[i], c, x, &r);
            if (!poisoned) th_check_backward(&sessions[i], c, x, &r);
            if (!c->shape.dense) {
                th_check_gate(&sessions[i], c, r.selection, false);
                th_check_index(&sessions[i], c, e, &r);
            }
            th_result_free(&r);
        }
        th_close(e);
    }
    th_expected_free(x);
    free(x_selection);
}

static void check_fill(const char *fill) {
    static const char *const shapes[] = {
        "b1q150k150h4g2d64B32t3c,@",
        "b2q60k100h2g1d128B16t4n,@",
        "b1q90k90h2g2d33B17t3c,@",
        "b1q90k90h2g1d64B16t1c,@,dense",
        "b3q70k70h2g1d64B32t2c,@,lens=70+31+0/70+40+3;tail=5",
    };
    const char *problems[COUNT(shapes)];
    for (size_t i = 0; i < COUNT(shapes); i++) {
        char *text = th_allocate(160, 1);
        strcat(strcat(strcat(text, shapes[i]), ";fill="), fill);
        problems[i] = text;
    }
    th_for_each(problems, COUNT(shapes), check_all);
    for (size_t i = 0; i < COUNT(shapes); i++)
        free((void *)(uintptr_t)problems[i]);
}

Test(fuzz, equal_scores) { check_fill("equal"); }
Test(fuzz, signed_zeros) { check_fill("zero"); }
Test(fuzz, huge_logits) { check_fill("huge"); }
Test(fuzz, very_negative_lse) { check_fill("very_negative"); }
Test(fuzz, zero_rows) { check_fill("zero_rows"); }
Test(fuzz, nan_keys) { check_fill("nan_keys"); }
Test(fuzz, infinite_keys) { check_fill("inf_keys"); }

/* One value of the list. */
#define PICK(random, list) (list)[th_integer(random, 0, (int64_t)COUNT(list) - 1)]

static size_t append_lengths(char *text, size_t used, size_t size, const int64_t *lengths, int64_t batch) {
    for (int64_t b = 0; b < batch; b++)
        used += (size_t)snprintf(text + used, size - used, "%s%lld", b > 0 ? "+" : "", (long long)lengths[b]);
    return used;
}

/* A problem of at most a few million multiplications. */
static void random_problem(th_random *r, char *text, size_t size) {
    static const char *const dtypes[] = {"f32", "f16", "bf16"};
    static const char *const layouts[] = {"thd", "bshd", "bhsd", "sliced", "fused"};
    static const char *const fills[] = {"normal", "normal", "integer", "equal", "huge", "zero_rows", "very_negative"};
    static const int head_dims[] = {8, 16, 32, 64, 64, 96, 128, 128, 256};
    static const int groups[] = {1, 1, 2, 3, 4, 8, 16};
    static const int block_sizes[] = {16, 16, 32, 48, 64, 100, 128};
    bool varlen = th_integer(r, 0, 1) == 1, causal = th_integer(r, 0, 3) > 0;
    int64_t batch = th_integer(r, 1, varlen ? 5 : 3), q[5], k[5], longest_q = 0, longest_k = 0;
    for (int64_t b = 0; b < batch; b++) {
        q[b] = b > 0 && !varlen           ? q[0]
               : th_integer(r, 0, 3) == 0 ? th_integer(r, varlen ? 0 : 1, 5)
                                          : th_integer(r, 1, 150);
        k[b] = b > 0 && !varlen           ? k[0]
               : th_integer(r, 0, 1) == 0 ? q[b]
               : th_integer(r, 0, 5) == 0 ? th_integer(r, 0, 5)
                                          : th_integer(r, 1, 250);
        if (!varlen && k[b] == 0) k[b] = 1;
        if (q[b] > longest_q) longest_q = q[b];
        if (k[b] > longest_k) longest_k = k[b];
    }
    int64_t kv_heads = th_integer(r, 1, 3), group = PICK(r, groups);
    int64_t head_dim = th_integer(r, 0, 2) == 0 ? th_integer(r, 1, 256) : PICK(r, head_dims);
    int64_t block_size = th_integer(r, 0, 3) == 0 ? th_integer(r, 16, 140) : PICK(r, block_sizes);
    int64_t top_k = th_integer(r, 0, 5) == 0 ? th_integer(r, 1, 128) : th_integer(r, 1, 8);
    int64_t sink = th_integer(r, 0, 3) == 0 ? th_integer(r, 0, top_k - 1) : 0;
    int64_t local = causal && th_integer(r, 0, 3) == 0 ? th_integer(r, 0, top_k - sink) : 0;
    size_t used = (size_t)snprintf(text, size, "b%lldq%lldk%lldh%lldg%lldd%lldB%lldt%lld%c,%s", (long long)batch,
                                   (long long)longest_q, (long long)longest_k, (long long)(kv_heads * group),
                                   (long long)kv_heads, (long long)head_dim, (long long)block_size, (long long)top_k,
                                   causal ? 'c' : 'n', PICK(r, dtypes));
    if (sink > 0) used += (size_t)snprintf(text + used, size - used, ",sink=%lld", (long long)sink);
    if (local > 0) used += (size_t)snprintf(text + used, size - used, ",local=%lld", (long long)local);
    if (th_integer(r, 0, 3) == 0)
        used += (size_t)snprintf(text + used, size - used, ",kconv=%lld", (long long)th_integer(r, 2, 8));
    if (th_integer(r, 0, 7) == 0) used += (size_t)snprintf(text + used, size - used, ",dense");
    if (th_integer(r, 0, 1) == 0) used += (size_t)snprintf(text + used, size - used, ",det");
    if (varlen) {
        used += (size_t)snprintf(text + used, size - used, ",lens=");
        used = append_lengths(text, used, size, q, batch);
        used += (size_t)snprintf(text + used, size - used, "/");
        used = append_lengths(text, used, size, k, batch);
    }
    if (varlen && th_integer(r, 0, 1) == 0)
        used += (size_t)snprintf(text + used, size - used, ";tail=%lld", (long long)th_integer(r, 1, 20));
    snprintf(text + used, size - used, ";layout=%s;fill=%s", PICK(r, layouts), PICK(r, fills));
}

Test(fuzz, random_problems) {
    enum { N = 100, SIZE = 240 };
    static char texts[N][SIZE];
    const char *problems[N];
    th_random random = {th_seed() * 1000003};
    for (size_t i = 0; i < N; i++) {
        random_problem(&random, texts[i], SIZE);
        problems[i] = texts[i];
    }
    th_for_each(problems, N, check_all);
}
