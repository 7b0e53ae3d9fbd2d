/* SPDX-License-Identifier: Apache-2.0
 *
 * Parity harness: runs a problem on each backend and capability tier through the public API alone and compares the
 * results with the float64 reference. Every buffer is surrounded by guard bytes; outputs and workspace hold NaN
 * patterns before each run; inputs, guards and the gaps of strided tensors must be unchanged after it.
 *
 * Environment: MOBA_TEST_BACKENDS (comma-separated, default "cpu"), MOBA_TEST_TIERS=0 (only the unmasked tier),
 * MOBA_TEST_SEED (default 1).
 */
#ifndef MOBA_TESTS_HARNESS_H
#define MOBA_TESTS_HARNESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../reference/reference.h"
#include "moba/moba.h"

/* ---------------------------------------------------------------------------------------------- sessions -- */

/** One backend with one capability mask. */
typedef struct th_session {
    char backend[32];
    char mask[256]; /* value of MOBA_CAPS_MASK; "" for none */
    moba_context *context;
} th_session;

/** Opens every backend and tier; ends the test when one cannot be opened. The array is freed by th_sessions_close. */
th_session *th_sessions_open(size_t *n);
void th_sessions_close(th_session *sessions, size_t n);
/** Opens one context like sessions[i], with another number of threads. */
moba_context *th_context_like(const th_session *session, int32_t n_threads);

/* ----------------------------------------------------------------------------------------------- problems -- */

typedef enum th_layout {
    TH_THD,
    TH_BSHD,   /* like thd, sequences further apart than they are long */
    TH_BHSD,   /* head-major */
    TH_SLICED, /* odd strides in every dimension */
    TH_FUSED,  /* rows of a wider tensor */
} th_layout;

typedef enum th_fill {
    TH_NORMAL,
    TH_INTEGER,       /* small integers; block means are integers, so scores are exact in every dtype */
    TH_EQUAL,         /* all keys alike: every score ties */
    TH_ZERO,          /* q and k zero, every other one -0 */
    TH_HUGE,          /* scaled scores up to some thousands */
    TH_VERY_NEGATIVE, /* every lse in the thousands below zero */
    TH_ZERO_ROWS,     /* every third row of q, k, v and dout is zero */
    TH_NAN_KEYS,      /* one NaN key in every fifth block */
    TH_INF_KEYS,      /* one infinite key in every fifth block */
} th_fill;

/**
 * A problem with its data, as doubles that the dtype represents. Built from a problem string of `moba bench`,
 * optionally followed by harness options: ";cu" (give cu_seqlens also for equal lengths), ";tail=N" (N storage rows
 * past the last sequence), ";layout=thd|bshd|bhsd|sliced|fused", ";fill=NAME", ";scale=X", ";limit=BYTES".
 */
typedef struct th_case {
    char text[320];         /* the whole string, for messages */
    char problem_text[256]; /* up to the first ';', for `moba bench` */
    moba_problem problem;
    ref_shape shape;
    int32_t *cu_q, *cu_k;
    bool use_cu;
    th_layout layout;
    th_fill fill;
    uint64_t seed;
    double *q, *k, *v, *w, *dout;
    double *kprime, *centroids;
    int32_t *selection; /* the reference's choice */
} th_case;

th_case *th_case_new(const char *text, uint64_t seed);
/** A case whose shape is set up but whose data is still unspecified, and the function that fills it. */
void th_case_fill(th_case *c);
/** Recomputes kprime, centroids and selection after the data was changed. */
void th_case_refresh(th_case *c);
void th_case_free(th_case *c);
uint64_t th_seed(void);

static inline int64_t th_q_elements(const th_case *c) {
    return c->shape.total_q * c->shape.n_q_heads * c->shape.head_dim;
}
static inline int64_t th_k_elements(const th_case *c) {
    return c->shape.total_k * c->shape.n_kv_heads * c->shape.head_dim;
}
static inline int64_t th_w_elements(const th_case *c) {
    return (int64_t)c->shape.n_kv_heads * c->shape.head_dim * c->shape.kconv_width;
}
static inline int64_t th_lse_elements(const th_case *c) { return c->shape.total_q * c->shape.n_q_heads; }
static inline int64_t th_selection_elements(const th_case *c) {
    return c->shape.dense ? 0 : th_lse_elements(c) * c->shape.top_k;
}

/** Deterministic random numbers: uniform in [0, 1), standard normal, integer in [low, high]. */
typedef struct th_random {
    uint64_t state;
} th_random;
double th_uniform(th_random *r);
double th_normal(th_random *r);
int64_t th_integer(th_random *r, int64_t low, int64_t high);

/** A random legal selection of at most top_k blocks a row (for prescribed routing), some rows empty. */
void th_random_selection(const th_case *c, th_random *r, int32_t *selection);

void *th_allocate(size_t n, size_t size);

/* ---------------------------------------------------------------------------------------------- failures -- */

/** Prints what failed and the line that reproduces it, and counts. */
void th_fail(const th_session *session, const th_case *c, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/** Ends the test at once: the harness itself cannot go on. */
_Noreturn void th_fatal(const char *format, ...) __attribute__((format(printf, 1, 2)));
/** Ends the test as failed when th_fail() was called in it. */
void th_finish(void);
/** Fails with the library's sentence unless `status` is MOBA_OK. */
bool th_ok(const th_session *session, const th_case *c, moba_status status, const char *what);

/* -------------------------------------------------------------------------------------------------- runs -- */

/** What a run gave: packed like the reference's arrays. */
typedef struct th_result {
    double *o, *lse, *dq, *dk, *dv, *dw;
    int32_t *selection;
    unsigned char *saved;
    size_t saved_bytes;
} th_result;
void th_result_free(th_result *r);

enum { TH_GUARD = 256 }; /* bytes before and after each buffer */

typedef struct th_buffer {
    moba_buffer base, data;
    size_t bytes;         /* without guards */
    unsigned char *image; /* with guards: contents before the run */
} th_buffer;

typedef struct th_exec {
    const th_session *session;
    const th_case *c;
    moba_context *context;
    moba_problem problem;
    moba_plan *plan;
    moba_tensor q_view, k_view;             /* strides of q-like and k-like tensors; buffers unset */
    th_buffer q, k, v, w, cu_q, cu_k, dout; /* inputs */
    th_buffer o, lse, selection, saved, dq, dk, dv, dw, workspace; /* outputs */
    uint8_t workspace_fill;
} th_exec;

enum { TH_ROUTE = 1, TH_FORWARD = 2, TH_ATTEND = 4, TH_BACKWARD = 8 };

/** Plan and buffers for `c`; `problem` NULL takes the case's. NULL (after th_fail) when the library refuses. */
th_exec *th_open(const th_session *session, const th_case *c, const moba_problem *problem);
/** The same in another context than the session's. */
th_exec *th_open_in(const th_session *session, moba_context *context, const th_case *c, const moba_problem *problem);
/**
 * Runs TH_ROUTE, TH_FORWARD or TH_ATTEND (over `prescribed`) and then, if asked, TH_BACKWARD, and reads back what
 * they wrote. False after th_fail().
 */
bool th_run(th_exec *e, unsigned what, const int32_t *prescribed, th_result *r);
/** Arguments as th_run() gives them, for tests that call the library themselves. */
moba_inputs th_inputs(const th_exec *e);
moba_forward_args th_forward_args(const th_exec *e);
moba_attend_args th_attend_args(const th_exec *e);
moba_route_args th_route_args(const th_exec *e);
moba_backward_args th_backward_args(const th_exec *e);
void th_close(th_exec *e);

/** th_open, th_run, th_close in one. */
bool th_once(const th_session *session, const th_case *c, const moba_problem *problem, unsigned what,
             const int32_t *prescribed, th_result *r);

/* -------------------------------------------------------------------------------------------------- lists -- */

/** What a test does with one problem on all sessions. */
typedef void (*th_check)(const th_session *sessions, size_t n, const th_case *c);

/** Opens the sessions, calls `check` for each problem string, '@' in it replaced by f32, f16 and bf16 in turn (once
 *  without '@'), with th_seed(), and finishes the test. */
void th_for_each(const char *const *problems, size_t n, th_check check);

/* ------------------------------------------------------------------------------------------- comparisons -- */

/** Reference results over one selection, and the largest errors of a plain same-dtype implementation. */
typedef struct th_expected {
    double *o, *lse, *dq, *dk, *dv, *dw;
    double plain_o, plain_dq, plain_dk, plain_dv, plain_dw;
    double max_score; /* largest |scaled score| */
    double max_dp;    /* largest |<dout, v>| */
    int64_t n_rows;   /* (row, head) pairs that attend to more than one key */
} th_expected;

th_expected *th_expect(const th_case *c, const int32_t *selection, bool gradients);
void th_expected_free(th_expected *x);

void th_check_forward(const th_session *s, const th_case *c, const th_expected *x, const th_result *r);
void th_check_backward(const th_session *s, const th_case *c, const th_expected *x, const th_result *r);

/** Runs and checks the forward and the backward over the reference's own selection, or dense, in each session. */
void th_check_both(const th_session *sessions, size_t n, const th_case *c);
/** Structure of every row, and regret; `identity`: equal to the reference's choice too. */
void th_check_gate(const th_session *s, const th_case *c, const int32_t *selection, bool identity);
/** The block index in `saved` is exactly the inversion of the selection in it. */
void th_check_index(const th_session *s, const th_case *c, const th_exec *e, const th_result *r);
/** Bit equality of n doubles; reports the first difference. */
bool th_check_same(const th_session *s, const th_case *c, const char *what, const double *a, const double *b,
                   int64_t n);
bool th_check_same_result(const th_session *s, const th_case *c, const char *what, const th_result *a,
                          const th_result *b);

/** Forward and backward (dq NULL: none) of plain same-dtype implementation 0 or 1 (plain.c). */
void th_plain(const th_case *c, const int32_t *selection, int variant, double *o, double *lse, double *dq, double *dk,
              double *dv, double *dw);

#endif
