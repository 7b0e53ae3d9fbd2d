/* SPDX-License-Identifier: Apache-2.0
 *
 * A backend without kernels: it records launches, prices variants as told, and fails on demand. Tests open it with
 * mock_open(); its capabilities are avx512 and wgmma.
 */
#ifndef MOBA_TESTS_MOCK_H
#define MOBA_TESTS_MOCK_H

#include "core/context.h"
#include "core/plan.h"

typedef struct mock_launch {
    const mobai_variant *variant;
    mobai_stage_args args;
} mock_launch;

enum { MOCK_MAX_LAUNCHES = 4096 };

typedef struct mock_state {
    int32_t n_devices;  /* what probe says */
    const char *reason; /* why there are none */
    bool refuse_open;
    bool capturing;
    bool backward;  /* false: attend_bwd has no variant that accepts */
    size_t scratch; /* scratch bytes of every attend variant */
    double attend_one_pass_cost, attend_partials_cost, combine_cost;
    int fail_at_launch;    /* -1: never; else the launch that fails, counted from 0 */
    moba_status fail_with; /* DEVICE_LOST: every later call fails too */
    bool lost;
    int n_open, n_buffers, n_prepared, n_begun, n_ended;
    int n_launches;
    mock_launch launches[MOCK_MAX_LAUNCHES];
} mock_state;

extern mock_state mock;
extern const mobai_backend mock_backend;

/** Back to: one device, nothing fails, partials cheaper than one pass. */
void mock_reset(void);
/** A context on the mock after mock_reset(); ends the test when it cannot be opened. */
moba_context *mock_open(void);

/** A causal problem of `total` rows, 4 query heads on 2 kv heads, head_dim 64, block_size 32, top_k 4, f32. */
moba_problem mock_problem(int64_t total);

/** Forward arguments whose buffers are of the right size, in the mock's memory; free with mock_free_args(). */
moba_forward_args mock_forward_args(moba_context *context, const moba_plan *plan, int64_t total_q, int64_t total_k);
void mock_free_args(moba_context *context, const moba_forward_args *args);

#endif
