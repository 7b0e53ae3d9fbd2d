/* SPDX-License-Identifier: Apache-2.0
 *
 * struct_size: callers built against a shorter structure still run, a longer one is accepted while what it adds is
 * zero.
 */
#include <criterion/criterion.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "mock.h"

#define HAS(text, part) cr_assert_not_null(strstr((text), (part)), "\"%s\" lacks \"%s\"", (text), (part))

/* A structure of the future: the present one and more. */
typedef struct future {
    moba_problem problem;
    unsigned char more[64];
} future;

Test(struct_size, a_shorter_problem_reads_missing_fields_as_zero) {
    moba_context *context = mock_open();
    moba_plan *plan = NULL;
    union {
        moba_problem problem;
        unsigned char bytes[sizeof(moba_problem)];
    } old;
    memset(&old, 0xee, sizeof old);
    moba_problem p = mock_problem(500);
    size_t size = offsetof(moba_problem, max_seqlen_q);
    memcpy(&old, &p, size);
    old.problem.struct_size = size;
    cr_assert_eq(moba_plan_create(context, &old.problem, &plan), MOBA_OK, "%s", moba_last_error());
    cr_assert_eq(plan->problem.max_seqlen_q, 500);
    cr_assert_eq(plan->problem.max_seqlen_k, 500);
    cr_assert_eq(plan->problem.workspace_limit, 0);
    moba_plan_destroy(plan);
    moba_context_destroy(context);
}

Test(struct_size, a_longer_problem_is_accepted_while_its_tail_is_zero) {
    moba_context *context = mock_open();
    moba_plan *plan = NULL;
    future f;
    memset(&f, 0, sizeof f);
    f.problem = mock_problem(500);
    f.problem.struct_size = sizeof f;
    cr_assert_eq(moba_plan_create(context, &f.problem, &plan), MOBA_OK, "%s", moba_last_error());
    moba_plan_destroy(plan);
    f.more[sizeof f.more - 1] = 1;
    cr_assert_eq(moba_plan_create(context, &f.problem, &plan), MOBA_ERROR_INVALID_ARGUMENT);
    cr_assert_null(plan);
    HAS(moba_last_error(), "struct_size");
    HAS(moba_last_error(), "newer");
    moba_context_destroy(context);
}

Test(struct_size, zero_and_tiny_sizes_are_refused) {
    moba_context *context = mock_open();
    moba_plan *plan = NULL;
    moba_problem p = mock_problem(500);
    for (size_t size = 0; size < sizeof(size_t); size++) {
        p.struct_size = size;
        cr_assert_eq(moba_plan_create(context, &p, &plan), MOBA_ERROR_INVALID_ARGUMENT);
        HAS(moba_last_error(), "struct_size");
    }
    moba_context_destroy(context);
}

Test(struct_size, argument_structures_grow_alike) {
    moba_context *context = mock_open();
    moba_problem p = mock_problem(100);
    moba_plan *plan = NULL;
    moba_stream stream = {NULL};
    cr_assert_eq(moba_plan_create(context, &p, &plan), MOBA_OK);
    struct {
        moba_forward_args args;
        unsigned char more[32];
    } f;
    memset(&f, 0, sizeof f);
    f.args = mock_forward_args(context, plan, 100, 100);
    f.args.struct_size = sizeof f;
    cr_assert_eq(moba_forward(plan, stream, &f.args), MOBA_OK, "%s", moba_last_error());
    f.more[0] = 1;
    cr_assert_eq(moba_forward(plan, stream, &f.args), MOBA_ERROR_INVALID_ARGUMENT);
    f.more[0] = 0;
    f.args.struct_size = 3;
    cr_assert_eq(moba_forward(plan, stream, &f.args), MOBA_ERROR_INVALID_ARGUMENT);
    /* a caller from before `workspace` was added: none is given, which this plan refuses by name */
    f.args.struct_size = offsetof(moba_forward_args, workspace);
    cr_assert_eq(moba_forward(plan, stream, &f.args), MOBA_ERROR_WORKSPACE_TOO_SMALL);
    HAS(moba_last_error(), "workspace");
    cr_assert_eq(moba_forward(plan, stream, NULL), MOBA_ERROR_INVALID_ARGUMENT);
    cr_assert_eq(moba_route(plan, stream, NULL), MOBA_ERROR_INVALID_ARGUMENT);
    cr_assert_eq(moba_attend(plan, stream, NULL), MOBA_ERROR_INVALID_ARGUMENT);
    cr_assert_eq(moba_backward(plan, stream, NULL), MOBA_ERROR_INVALID_ARGUMENT);
    mock_free_args(context, &f.args);
    moba_plan_destroy(plan);
    moba_context_destroy(context);
}

Test(struct_size, descriptions_write_no_more_than_the_caller_has) {
    union {
        moba_device_description d;
        unsigned char bytes[sizeof(moba_device_description)];
    } out;
    moba_context *context = mock_open();
    memset(&out, 0xab, sizeof out);
    out.d.struct_size = offsetof(moba_device_description, driver);
    cr_assert_eq(moba_context_device(context, &out.d), MOBA_OK);
    cr_assert_str_eq(out.d.name, "mock device");
    cr_assert_eq(out.d.struct_size, offsetof(moba_device_description, driver));
    for (size_t i = offsetof(moba_device_description, driver); i < sizeof out; i++)
        cr_assert_eq(out.bytes[i], 0xab, "byte %zu", i);
    out.d.struct_size = 0;
    cr_assert_eq(moba_context_device(context, &out.d), MOBA_ERROR_INVALID_ARGUMENT);
    moba_context_destroy(context);

    moba_context_options options = MOBA_CONTEXT_OPTIONS_INIT;
    options.struct_size = offsetof(moba_context_options, native); /* a shorter one */
    options.backend = "cpu";
    cr_assert_eq(moba_context_create(&options, &context), MOBA_OK, "%s", moba_last_error());
    moba_context_destroy(context);
}
