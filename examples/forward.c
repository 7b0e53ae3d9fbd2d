/* SPDX-License-Identifier: Apache-2.0 */
#include <err.h>
#include <moba/moba.h>
#include <stdio.h>
#include <stdlib.h>
enum { TOKENS = 4096, HEADS = 4, DIM = 64, N = TOKENS * HEADS * DIM };
static float data[4 * N]; /* q, k, v, o, each [token][head][dim] */
static void check(moba_status status) {
    if (status != MOBA_OK) errx(1, "%s: %s", moba_status_name(status), moba_last_error());
}

int main(void) {
    moba_context *context;
    check(moba_context_create(NULL, &context)); /* the best device, or what MOBA_BACKEND names */
    moba_problem problem = MOBA_PROBLEM_INIT;   /* float32, causal, block_size 128, top_k 8 */
    problem.n_q_heads = problem.n_kv_heads = HEADS;
    problem.head_dim = DIM;
    problem.max_total_q = problem.max_total_k = TOKENS;
    moba_plan *plan;
    check(moba_plan_create(context, &problem, &plan));
    moba_buffer buffer;
    for (int i = 0; i < 4 * N; i++)
        data[i] = (float)rand() / (float)RAND_MAX - 0.5f;
    check(moba_buffer_create(context, sizeof data, &buffer));
    check(moba_buffer_write(context, (moba_stream){NULL}, buffer, data, sizeof data));
    moba_tensor t[4];
    for (int i = 0; i < 4; i++)
        t[i] = (moba_tensor){{buffer.handle, (uint64_t)i * N * sizeof(float)}, HEADS * DIM, DIM, 0};
    moba_forward_args args = MOBA_FORWARD_ARGS_INIT;
    args.in = (moba_inputs){.q = t[0], .k = t[1], .v = t[2], .batch = 1, .total_q = TOKENS, .total_k = TOKENS};
    args.o = t[3];
    check(moba_plan_workspace(plan, &args.workspace_bytes));
    check(moba_buffer_create(context, args.workspace_bytes, &args.workspace));
    check(moba_forward(plan, (moba_stream){NULL}, &args));
    check(moba_buffer_read(context, (moba_stream){NULL}, args.o.buffer, data, N * sizeof(float)));
    printf("%s: o[%d][0][0] = %f\n", moba_context_backend(context), TOKENS - 1, (double)data[N - HEADS * DIM]);
    moba_buffer_destroy(context, args.workspace);
    moba_buffer_destroy(context, buffer);
    moba_plan_destroy(plan);
    moba_context_destroy(context);
}
