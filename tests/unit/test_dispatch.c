/* SPDX-License-Identifier: Apache-2.0
 *
 * Kernel chains over the mock's variants: capability mask, dtype, reject, MOBA_KERNEL, cost, ties, flows, explain.
 */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mock.h"

#define HAS(text, part) cr_assert_not_null(strstr((text), (part)), "\"%s\" lacks \"%s\"", (text), (part))
#define LACKS(text, part) cr_assert_null(strstr((text), (part)), "\"%s\" has \"%s\"", (text), (part))

static moba_plan *make(moba_context *context, const moba_problem *p) {
    moba_plan *plan = NULL;
    cr_assert_eq(moba_plan_create(context, p, &plan), MOBA_OK, "%s", moba_last_error());
    return plan;
}

static void expect(const moba_plan *plan, const char *stage, const char *name) {
    const char *got = moba_plan_kernel(plan, stage);
    if (name == NULL) {
        cr_assert_null(got, "%s: %s", stage, got);
    } else {
        cr_assert(got != NULL && strcmp(got, name) == 0, "%s: %s, expected %s", stage, got != NULL ? got : "none",
                  name);
    }
}

Test(dispatch, cheapest_usable_variant_wins) {
    moba_context *context = mock_open();
    moba_problem p = mock_problem(1000);
    moba_plan *plan = make(context, &p);
    expect(plan, "gate", "gate__avx512"); /* gate__mma is cheaper, but the device has no mma */
    expect(plan, "attend", "attend__partials");
    expect(plan, "combine", "combine__f32");
    expect(plan, "attend_bwd", "attend_bwd__atomics");
    expect(plan, "dq_sum", NULL);
    expect(plan, "kconv", NULL);
    cr_assert_eq(mock.n_prepared, 7, "every chosen kernel is prepared: %d", mock.n_prepared);
    moba_plan_destroy(plan);
    moba_context_destroy(context);
}

Test(dispatch, masked_capability_and_ties) {
    setenv("MOBA_CAPS_MASK", "-avx512", 1);
    moba_context *context = mock_open();
    moba_problem p = mock_problem(1000);
    moba_plan *plan = make(context, &p);
    char text[4096];
    expect(plan, "gate", "gate__first"); /* costs what gate__tie costs, and stands first */
    cr_assert_eq(moba_plan_explain(plan, text, sizeof text), MOBA_OK);
    HAS(text, "gate__avx512: rejected, needs avx512 (absent or masked)");
    HAS(text, "gate__mma: rejected, needs mma");
    HAS(text, "gate__tie: not cheapest");
    moba_plan_destroy(plan);
    moba_context_destroy(context);
}

Test(dispatch, flows_are_priced_as_pairs) {
    moba_context *context = mock_open();
    moba_problem p = mock_problem(1000);
    mock.attend_one_pass_cost = 40; /* dearer than attend__partials alone, cheaper than it with its combine */
    moba_plan *plan = make(context, &p);
    expect(plan, "attend", "attend__one_pass");
    expect(plan, "combine", NULL);
    moba_plan_destroy(plan);
    mock.attend_one_pass_cost = 60;
    plan = make(context, &p);
    expect(plan, "attend", "attend__partials");
    double cost, both;
    cr_assert_eq(moba_plan_cost(plan, "fwd", &cost), MOBA_OK);
    cr_assert_float_eq(cost, 2 + 5 + 2 + 20 + 30, 1e-9, "centroid, gate, index, attend, combine: %g", cost);
    cr_assert_eq(moba_plan_cost(plan, "route", &both), MOBA_OK);
    cr_assert_float_eq(both, 7, 1e-9, "%g", both);
    moba_plan_destroy(plan);
    moba_context_destroy(context);
}

Test(dispatch, dtype_and_shape_choose_the_native_kernel) {
    moba_context *context = mock_open();
    moba_problem p = mock_problem(1000);
    char text[4096];
    p.dtype = MOBA_BF16;
    p.head_dim = 128;
    moba_plan *plan = make(context, &p);
    expect(plan, "attend", "attend_bf16_d128__sm90");
    expect(plan, "combine", "combine__sm90");
    moba_plan_destroy(plan);
    p.head_dim = 64;
    plan = make(context, &p);
    expect(plan, "attend", "attend__partials");
    cr_assert_eq(moba_plan_explain(plan, text, sizeof text), MOBA_OK);
    HAS(text, "attend_bf16_d128__sm90: rejected, head_dim is not 128");
    moba_plan_destroy(plan);
    p.dtype = MOBA_F32;
    plan = make(context, &p);
    cr_assert_eq(moba_plan_explain(plan, text, sizeof text), MOBA_OK);
    HAS(text, "attend_bf16_d128__sm90: rejected, other dtype");
    moba_plan_destroy(plan);
    moba_context_destroy(context);
}

Test(dispatch, dense_takes_one_pass_kernels_and_no_routing) {
    moba_context *context = mock_open();
    moba_problem p = mock_problem(1000);
    p.dense = 1;
    p.kconv_width = 3;
    moba_plan *plan = make(context, &p);
    expect(plan, "attend", "attend__one_pass");
    expect(plan, "gate", NULL);
    expect(plan, "index", NULL);
    expect(plan, "kconv", "kconv__mock");
    expect(plan, "kconv_bwd", "kconv_bwd__mock");
    size_t bytes = 1;
    cr_assert_eq(moba_plan_saved(plan, &bytes), MOBA_OK);
    cr_assert_eq(bytes, 0);
    moba_plan_destroy(plan);
    moba_context_destroy(context);
}

Test(dispatch, kernels_can_be_forced_by_pattern) {
    setenv("MOBA_KERNEL", "gate=*tie,attend=attend__one*", 1);
    moba_context *context = mock_open();
    moba_problem p = mock_problem(1000);
    moba_plan *plan = make(context, &p);
    expect(plan, "gate", "gate__tie");
    expect(plan, "attend", "attend__one_pass");
    moba_plan_destroy(plan);
    moba_context_destroy(context);
    setenv("MOBA_KERNEL", "gate=nosuch*", 1);
    context = mock_open();
    cr_assert_eq(moba_plan_create(context, &p, &plan), MOBA_ERROR_UNSUPPORTED);
    cr_assert_null(plan);
    HAS(moba_last_error(), "gate");
    HAS(moba_last_error(), "nosuch*");
    HAS(moba_last_error(), "gate__mma: needs mma");
    moba_context_destroy(context);
}

/* flash-attention PR#1766: a deterministic flag that cannot be honoured is a refusal, not a hint. */
Test(dispatch, deterministic_is_honoured_or_refused) {
    moba_context *context = mock_open();
    moba_problem p = mock_problem(1000);
    p.deterministic = 1;
    moba_plan *plan = make(context, &p);
    expect(plan, "attend_bwd", "attend_bwd__ordered");
    expect(plan, "dq_sum", "dq_sum__mock");
    moba_plan_destroy(plan);
    p.dtype = MOBA_BF16; /* the ordered kernel is for f32 */
    cr_assert_eq(moba_plan_create(context, &p, &plan), MOBA_ERROR_UNSUPPORTED);
    HAS(moba_last_error(), "deterministic");
    HAS(moba_last_error(), "atomics");
    moba_context_destroy(context);
}

Test(dispatch, a_plan_without_backward_says_why) {
    moba_context *context = mock_open();
    moba_problem p = mock_problem(1000);
    mock.backward = false;
    moba_plan *plan = make(context, &p);
    char text[4096];
    double cost;
    expect(plan, "attend_bwd", NULL);
    expect(plan, "delta", NULL);
    cr_assert_eq(moba_plan_cost(plan, "bwd", &cost), MOBA_ERROR_UNSUPPORTED);
    HAS(moba_last_error(), "switched off");
    cr_assert_eq(moba_plan_explain(plan, text, sizeof text), MOBA_OK);
    HAS(text, "no backward");
    moba_stream stream = {NULL};
    moba_backward_args b = MOBA_BACKWARD_ARGS_INIT;
    cr_assert_eq(moba_backward(plan, stream, &b), MOBA_ERROR_UNSUPPORTED);
    HAS(moba_last_error(), "switched off");
    moba_plan_destroy(plan);
    moba_context_destroy(context);
}

Test(dispatch, explain_is_complete_and_cuts_cleanly) {
    moba_context *context = mock_open();
    moba_problem p = mock_problem(1000);
    moba_plan *plan = make(context, &p);
    char text[8192], small[32];
    static const char *const parts[] = {"head_dim 64",
                                        "block_size 32",
                                        "top_k 4",
                                        "mock device",
                                        "centroid__mock",
                                        "gate__avx512",
                                        "index__mock",
                                        "attend__partials",
                                        "combine__f32",
                                        "delta__mock",
                                        "attend_bwd__atomics",
                                        "workspace",
                                        "slice",
                                        "saved",
                                        "us"};
    cr_assert_eq(moba_plan_explain(plan, text, sizeof text), MOBA_OK);
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        HAS(text, parts[i]);
    for (size_t i = 0; i < mock_backend.n_variants; i++) {
        mobai_stage stage = mock_backend.variants[i].stage;
        if (stage != MOBAI_STAGE_KCONV && stage != MOBAI_STAGE_KCONV_BWD) HAS(text, mock_backend.variants[i].name);
    }
    LACKS(text, "kconv__mock");
    memset(small, 'x', sizeof small);
    cr_assert_eq(moba_plan_explain(plan, small, sizeof small), MOBA_OK);
    cr_assert(strlen(small) == sizeof small - 1 && strncmp(small, text, sizeof small - 1) == 0);
    cr_assert_eq(moba_plan_explain(plan, NULL, 0), MOBA_ERROR_INVALID_ARGUMENT);
    char needed[32];
    snprintf(needed, sizeof needed, "%zu", strlen(text) + 1);
    HAS(moba_last_error(), needed);
    moba_plan_destroy(plan);
    moba_context_destroy(context);
}
