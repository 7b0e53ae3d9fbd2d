/* SPDX-License-Identifier: Apache-2.0
 *
 * Every limit of docs/spec.md section 8: what is past it is refused with a sentence that names the field, its value and
 * the limit; what is on it is accepted.
 */
#include <criterion/criterion.h>
#include <float.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "mock.h"

#define HAS(text, part) cr_assert_not_null(strstr((text), (part)), "\"%s\" lacks \"%s\"", (text), (part))
#define FIELD(name) #name, offsetof(moba_problem, name), sizeof(((moba_problem *)0)->name)

typedef struct row {
    const char *name;
    size_t offset, size;
    int64_t value;
    moba_status status;
    const char *limit; /* part of the sentence; NULL with MOBA_OK */
} row;

static void set(moba_problem *p, const row *r) {
    int32_t narrow = (int32_t)r->value;
    if (r->size == 4) memcpy((char *)p + r->offset, &narrow, 4);
    if (r->size == 8) memcpy((char *)p + r->offset, &r->value, 8);
}

static moba_status create(moba_context *context, const moba_problem *p) {
    moba_plan *plan = NULL;
    moba_status status = moba_plan_create(context, p, &plan);
    cr_assert_eq(status == MOBA_OK, plan != NULL);
    moba_plan_destroy(plan);
    return status;
}

static void check_rows(const row *rows, size_t n, const moba_problem *base) {
    moba_context *context = mock_open();
    for (size_t i = 0; i < n; i++) {
        moba_problem p = *base;
        char value[32];
        set(&p, &rows[i]);
        moba_status status = create(context, &p);
        cr_assert_eq(status, rows[i].status, "%s = %lld: %s: %s", rows[i].name, (long long)rows[i].value,
                     moba_status_name(status), moba_last_error());
        if (status == MOBA_OK) continue;
        snprintf(value, sizeof value, "%lld", (long long)rows[i].value);
        HAS(moba_last_error(), rows[i].name);
        HAS(moba_last_error(), value);
        HAS(moba_last_error(), rows[i].limit);
    }
    moba_context_destroy(context);
}

#define BAD MOBA_ERROR_INVALID_ARGUMENT
#define NO MOBA_ERROR_UNSUPPORTED
#define OK MOBA_OK

Test(problems, every_field_has_its_limits) {
    static const row rows[] = {
        {FIELD(dtype), 3, BAD, "MOBA_BF16"},
        {FIELD(dtype), -1, BAD, "MOBA_F32"},
        {FIELD(dtype), 1, OK, NULL},
        {FIELD(n_q_heads), 0, BAD, "1"},
        {FIELD(n_q_heads), -4, BAD, "1"},
        {FIELD(n_q_heads), 3, BAD, "multiple of n_kv_heads"},
        {FIELD(n_q_heads), 2, OK, NULL},
        {FIELD(n_kv_heads), 0, BAD, "1"},
        {FIELD(n_kv_heads), 8, BAD, "multiple"},
        {FIELD(n_kv_heads), 3, BAD, "multiple"},
        {FIELD(n_kv_heads), 1, OK, NULL},
        {FIELD(head_dim), 0, BAD, "1..256"},
        {FIELD(head_dim), -1, BAD, "1..256"},
        {FIELD(head_dim), 1, OK, NULL},
        {FIELD(head_dim), 256, OK, NULL},
        {FIELD(head_dim), 257, NO, "1..256"},
        {FIELD(block_size), 0, BAD, "16"},
        {FIELD(block_size), -1, BAD, "16"},
        {FIELD(block_size), 15, NO, "16"},
        {FIELD(block_size), 16, OK, NULL},
        {FIELD(block_size), 17, OK, NULL},
        {FIELD(block_size), 100, OK, NULL},
        {FIELD(block_size), INT32_MAX, OK, NULL},
        {FIELD(top_k), 0, BAD, "1..128"},
        {FIELD(top_k), -3, BAD, "1..128"},
        {FIELD(top_k), 1, OK, NULL},
        {FIELD(top_k), 128, OK, NULL},
        {FIELD(top_k), 129, NO, "1..128"},
        {FIELD(n_sink_blocks), -1, BAD, "negative"},
        {FIELD(n_sink_blocks), 3, OK, NULL},
        {FIELD(n_sink_blocks), 4, BAD, "top_k"},
        {FIELD(n_sink_blocks), INT32_MAX, BAD, "top_k"},
        {FIELD(n_local_blocks), -1, BAD, "negative"},
        {FIELD(n_local_blocks), 4, OK, NULL},
        {FIELD(n_local_blocks), 5, BAD, "top_k"},
        {FIELD(n_local_blocks), INT32_MAX, BAD, "top_k"},
        {FIELD(kconv_width), 1, NO, "2..8"},
        {FIELD(kconv_width), -1, NO, "2..8"},
        {FIELD(kconv_width), 2, OK, NULL},
        {FIELD(kconv_width), 8, OK, NULL},
        {FIELD(kconv_width), 9, NO, "2..8"},
        {FIELD(causal), 2, BAD, "0 or 1"},
        {FIELD(dense), -1, BAD, "0 or 1"},
        {FIELD(deterministic), 7, BAD, "0 or 1"},
        {FIELD(inference), 2, BAD, "0 or 1"},
        {FIELD(reserved), 1, BAD, "must be 0"},
        {FIELD(max_batch), 0, BAD, "1"},
        {FIELD(max_batch), INT64_C(1) << 31, NO, "2^31"},
        {FIELD(max_total_q), -1, BAD, "0"},
        {FIELD(max_total_q), INT64_C(1) << 31, NO, "2^31"},
        {FIELD(max_total_k), -1, BAD, "0"},
        {FIELD(max_total_k), INT64_C(1) << 31, NO, "2^31"},
        {FIELD(max_seqlen_q), -1, BAD, "0"},
        {FIELD(max_seqlen_k), -1, BAD, "0"},
        {FIELD(max_seqlen_q), 1000, OK, NULL},
    };
    moba_problem base = mock_problem(10000);
    check_rows(rows, sizeof rows / sizeof *rows, &base);
}

Test(problems, non_causal_has_no_local_blocks_and_may_have_top_k_sinks) {
    static const row rows[] = {
        {FIELD(n_local_blocks), 1, BAD, "causal"},
        {FIELD(n_local_blocks), 0, OK, NULL},
        {FIELD(n_sink_blocks), 4, OK, NULL},
        {FIELD(n_sink_blocks), 5, BAD, "top_k"},
    };
    moba_problem base = mock_problem(10000);
    base.causal = 0;
    check_rows(rows, sizeof rows / sizeof *rows, &base);
}

Test(problems, top_k_may_pass_128_when_it_covers_all_blocks) {
    static const row rows[] = {
        {FIELD(top_k), 312, NO, "313"}, {FIELD(top_k), 313, OK, NULL}, {FIELD(top_k), 100000, OK, NULL}};
    moba_problem base = mock_problem(10000); /* 313 blocks of 32 */
    check_rows(rows, sizeof rows / sizeof *rows, &base);
    base.max_seqlen_k = 32 * 129;
    static const row shorter[] = {{FIELD(top_k), 129, OK, NULL}};
    check_rows(shorter, 1, &base);
}

Test(problems, routing_fields_are_ignored_when_dense) {
    moba_context *context = mock_open();
    moba_problem p = mock_problem(1000);
    p.dense = 1;
    p.block_size = 0;
    p.top_k = -5;
    cr_assert_eq(create(context, &p), MOBA_OK, "%s", moba_last_error());
    moba_context_destroy(context);
}

Test(problems, softmax_scale_must_be_finite) {
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    moba_context *context = mock_open();
    moba_problem p = mock_problem(1000);
    for (size_t i = 0; i < 3; i++) {
        p.softmax_scale = bad[i];
        cr_assert_eq(create(context, &p), BAD);
        HAS(moba_last_error(), "softmax_scale");
        HAS(moba_last_error(), "finite");
    }
    p.softmax_scale = -FLT_MAX;
    cr_assert_eq(create(context, &p), MOBA_OK);
    moba_context_destroy(context);
}

Test(problems, null_arguments_are_refused) {
    moba_context *context = mock_open();
    moba_problem p = mock_problem(100);
    moba_plan *plan = (moba_plan *)&p;
    cr_assert_eq(moba_plan_create(NULL, &p, &plan), BAD);
    cr_assert_null(plan);
    cr_assert_eq(moba_plan_create(context, NULL, &plan), BAD);
    HAS(moba_last_error(), "NULL");
    cr_assert_eq(moba_plan_create(context, &p, NULL), BAD);
    size_t bytes;
    double cost;
    char text[8];
    cr_assert_eq(moba_plan_workspace(NULL, &bytes), BAD);
    cr_assert_eq(moba_plan_saved(NULL, &bytes), BAD);
    cr_assert_eq(moba_plan_explain(NULL, text, sizeof text), BAD);
    cr_assert_eq(moba_plan_cost(NULL, "fwd", &cost), BAD);
    cr_assert_null(moba_plan_kernel(NULL, "attend"));
    cr_assert_eq(moba_plan_create(context, &p, &plan), MOBA_OK);
    cr_assert_eq(moba_plan_workspace(plan, NULL), BAD);
    cr_assert_eq(moba_plan_saved(plan, NULL), BAD);
    cr_assert_eq(moba_plan_cost(plan, "forward", &cost), BAD);
    HAS(moba_last_error(), "forward");
    cr_assert_eq(moba_plan_cost(plan, NULL, &cost), BAD);
    cr_assert_eq(moba_plan_cost(plan, "fwd", NULL), BAD);
    cr_assert_null(moba_plan_kernel(plan, "nosuch"));
    cr_assert_null(moba_plan_kernel(plan, NULL));
    moba_plan_destroy(plan);
    moba_plan_destroy(NULL);
    moba_context_destroy(context);
}

/* Bounds whose buffers do not fit in 64 bits, or in any memory, end in a status, never in a wrapped size. */
Test(problems, sizes_that_overflow_are_refused) {
    moba_context *context = mock_open();
    moba_problem p = mock_problem(INT32_MAX);
    p.n_q_heads = 1 << 25;
    p.n_kv_heads = 1 << 25;
    p.head_dim = 256;
    p.top_k = 128;
    p.block_size = 16;
    cr_assert_eq(create(context, &p), NO);
    HAS(moba_last_error(), "64 bits");
    p = mock_problem(INT32_MAX);
    p.n_q_heads = INT32_MAX;
    p.n_kv_heads = 1;
    cr_assert_eq(create(context, &p), NO);
    p = mock_problem(INT32_MAX); /* large, but countable */
    p.workspace_limit = MOBA_WORKSPACE_UNLIMITED;
    moba_plan *plan = NULL;
    size_t bytes;
    cr_assert_eq(moba_plan_create(context, &p, &plan), MOBA_OK, "%s", moba_last_error());
    cr_assert_eq(moba_plan_saved(plan, &bytes), MOBA_OK);
    cr_assert_gt(bytes, (size_t)INT32_MAX * 4 * 4 * 4);
    moba_plan_destroy(plan);
    moba_context_destroy(context);
}
