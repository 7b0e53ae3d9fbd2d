/* SPDX-License-Identifier: Apache-2.0
 *
 * moba_advise() on the CPU backend: order, limits, and bad arguments.
 */
#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

#include "moba/moba.h"

static moba_context *context;

static void open_context(void) {
    moba_context_options options = MOBA_CONTEXT_OPTIONS_INIT;
    options.backend = "cpu";
    cr_assert_eq(moba_context_create(&options, &context), MOBA_OK, "%s", moba_last_error());
}
static void close_context(void) { moba_context_destroy(context); }
TestSuite(advise, .init = open_context, .fini = close_context);

static moba_problem problem_of(int64_t length) {
    moba_problem problem = MOBA_PROBLEM_INIT;
    problem.n_q_heads = 8;
    problem.n_kv_heads = 4;
    problem.head_dim = 64;
    problem.max_batch = 1;
    problem.max_total_q = problem.max_total_k = length;
    return problem;
}

enum { CAPACITY = 64 };

static int32_t advise(const moba_problem *problem, double delta_mu, int64_t max_keys, moba_advice *out,
                      int32_t capacity) {
    int32_t n = -1;
    out[0].struct_size = sizeof out[0];
    const moba_status status = moba_advise(context, problem, delta_mu, max_keys, out, capacity, &n);
    cr_assert_eq(status, MOBA_OK, "%s", moba_last_error());
    return n;
}

Test(advise, ranked_and_within_limits) {
    const moba_problem problem = problem_of(16384);
    moba_advice out[CAPACITY];
    const int32_t n = advise(&problem, 4.0, 1024, out, CAPACITY);
    cr_assert(n > 10, "%d choices", n);
    bool reliable = true;
    int n_reliable = 0;
    for (int32_t i = 0; i < n; i++) {
        const moba_advice *a = &out[i];
        cr_assert(a->top_k >= 1 && (int64_t)a->top_k * a->block_size <= 1024);
        cr_assert(a->block_size >= 16 && a->block_size <= 512);
        cr_assert(a->forward_us > 0.0 && a->backward_us > 0.0 && isfinite(a->forward_us) && isfinite(a->backward_us));
        cr_assert(a->dense_forward_us == out[0].dense_forward_us && a->dense_forward_us > 0.0);
        cr_assert(fabs(a->snr - moba_snr(64, a->block_size, 4.0, 1, 0.0)) < 1e-12);
        cr_assert(a->recall >= 0.0 && a->recall <= 1.0);
        cr_assert(a->break_even == -1 || (a->break_even >= 16 && a->break_even <= (int64_t)1 << 24));
        const bool now = a->recall >= 0.99;
        cr_assert(reliable || !now, "a reliable choice stands behind one that is not");
        if (i > 0 && now) cr_assert(a->forward_us >= out[i - 1].forward_us);
        if (i > 0 && !now && !reliable) cr_assert(a->recall <= out[i - 1].recall);
        reliable = now;
        n_reliable += now;
    }
    cr_assert(n_reliable > 0 && n_reliable < n);
    /* The causal own block takes one of top_k: alone it finds nothing. */
    for (int32_t i = 0; i < n; i++) {
        if (out[i].top_k == 1) cr_assert(out[i].recall == 0.0);
    }
}

Test(advise, break_even_is_where_the_model_turns) {
    moba_problem problem = problem_of(65536);
    moba_advice out[1];
    cr_assert_eq(advise(&problem, 4.0, 1024, out, 1), 1);
    cr_assert(out[0].break_even > 0, "the CPU backend beats dense somewhere");
    problem.block_size = out[0].block_size;
    problem.top_k = out[0].top_k;
    for (int side = 0; side < 2; side++) {
        const int64_t length = side == 0 ? out[0].break_even * 2 : out[0].break_even / 2;
        if (length <= problem.block_size) continue;
        double us[2];
        for (int dense = 0; dense < 2; dense++) {
            moba_plan *plan = NULL;
            problem.dense = dense;
            problem.max_total_q = problem.max_total_k = length;
            cr_assert_eq(moba_plan_create(context, &problem, &plan), MOBA_OK, "%s", moba_last_error());
            cr_assert_eq(moba_plan_cost(plan, "fwd", &us[dense]), MOBA_OK);
            moba_plan_destroy(plan);
        }
        if (side == 0) cr_assert(us[0] < us[1], "at %lld: %g us, dense %g us", (long long)length, us[0], us[1]);
        if (side == 1) cr_assert(us[0] >= us[1], "at %lld: %g us, dense %g us", (long long)length, us[0], us[1]);
    }
}

Test(advise, capacity_and_short_entries) {
    const moba_problem problem = problem_of(4096);
    moba_advice all[CAPACITY];
    advise(&problem, 2.0, 0, all, CAPACITY);
    moba_advice two[3];
    memset(two, 0x55, sizeof two);
    cr_assert_eq(advise(&problem, 2.0, 0, two, 2), 2);
    cr_assert_eq(two[1].block_size, all[1].block_size);
    cr_assert_eq(two[2].block_size, 0x55555555);
    /* A caller built against a shorter structure. */
    enum { SHORT = offsetof(moba_advice, recall) };
    unsigned char bytes[2 * SHORT + 8];
    memset(bytes, 0x55, sizeof bytes);
    const size_t size = SHORT;
    memcpy(bytes, &size, sizeof size);
    int32_t n = 0;
    cr_assert_eq(moba_advise(context, &problem, 2.0, 0, (moba_advice *)(void *)bytes, 2, &n), MOBA_OK);
    cr_assert_eq(n, 2);
    cr_assert_arr_eq(bytes + SHORT + sizeof size, (unsigned char *)&all[1] + sizeof size, SHORT - sizeof size);
    cr_assert_eq(bytes[2 * SHORT], 0x55);
    n = 7;
    cr_assert_eq(moba_advise(context, &problem, 2.0, 0, NULL, 0, &n), MOBA_OK);
    cr_assert_eq(n, 0);
}

Test(advise, bad_arguments) {
    moba_problem problem = problem_of(4096);
    moba_advice out[2];
    int32_t n = 0;
    out[0].struct_size = sizeof out[0];
    cr_assert_eq(moba_advise(NULL, &problem, 1.0, 0, out, 2, &n), MOBA_ERROR_INVALID_ARGUMENT);
    cr_assert_eq(moba_advise(context, NULL, 1.0, 0, out, 2, &n), MOBA_ERROR_INVALID_ARGUMENT);
    cr_assert_eq(moba_advise(context, &problem, 1.0, 0, out, 2, NULL), MOBA_ERROR_INVALID_ARGUMENT);
    cr_assert_eq(moba_advise(context, &problem, 1.0, 0, NULL, 2, &n), MOBA_ERROR_INVALID_ARGUMENT);
    cr_assert_eq(moba_advise(context, &problem, 1.0, 0, out, -1, &n), MOBA_ERROR_INVALID_ARGUMENT);
    cr_assert_eq(moba_advise(context, &problem, NAN, 0, out, 2, &n), MOBA_ERROR_INVALID_ARGUMENT);
    cr_assert_eq(moba_advise(context, &problem, 1.0, -5, out, 2, &n), MOBA_ERROR_INVALID_ARGUMENT);
    cr_assert(strstr(moba_last_error(), "-5"), "%s", moba_last_error());
    problem.head_dim = 257;
    cr_assert_neq(moba_advise(context, &problem, 1.0, 0, out, 2, &n), MOBA_OK);
    cr_assert(strstr(moba_last_error(), "257"), "%s", moba_last_error());
    problem.head_dim = 64;
    out[0].struct_size = 4;
    cr_assert_eq(moba_advise(context, &problem, 1.0, 0, out, 2, &n), MOBA_ERROR_INVALID_ARGUMENT);
}
