/* SPDX-License-Identifier: Apache-2.0
 *
 * Rates of the CPU backend beside OpenBLAS's sgemm, in one run, with the thresholds that the project holds itself to.
 *
 *   env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE build/bin/cpu_rates [length [repeats [cpu]]]
 *
 * Problem: batch 1, 8 heads, head_dim 128, block_size 128, top_k 8, causal, float32, `length` tokens (16384), normal
 * random data. Useful flops count selected, visible (query, key) pairs: 4 head_dim each forward, 10 backward. sgemm is
 * 1024 x 1024 x 1024. The contestants take turns `repeats` times (5) and the least time of each counts, so that a busy
 * neighbour hits all of them alike. With `cpu` one thread is measured, in its own CPU time: the figures to take on a
 * machine that is never quiet. Exit code: 0 when every threshold is met, 1 when not, 2 when something failed.
 */
#define _POSIX_C_SOURCE 200809L
#include <cblas.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "moba/moba.h"

enum { HEADS = 8, HEAD_DIM = 128, BLOCK = 128, TOP_K = 8, GEMM = 1024, MAX_STAGES = 64 };

static clockid_t clock_id = CLOCK_MONOTONIC;

static double now_ms(void) {
    struct timespec t;
    clock_gettime(clock_id, &t);
    return 1e3 * (double)t.tv_sec + 1e-6 * (double)t.tv_nsec;
}

static void check(moba_status status, const char *what) {
    if (status == MOBA_OK) return;
    fprintf(stderr, "cpu_rates: %s: %s\n", what, moba_last_error());
    exit(2);
}

/** Launches of one run in order, seen through the log: each line comes just before its launch. */
static struct {
    int n;
    char name[MAX_STAGES][64];
    double begin[MAX_STAGES + 1];
} launches;

static void on_log(void *user, moba_log_level level, const char *line) {
    (void)user;
    if (level != MOBA_LOG_RUN || strncmp(line, "launch ", 7) != 0 || launches.n == MAX_STAGES) return;
    sscanf(line + 7, "%63s", launches.name[launches.n]);
    launches.begin[launches.n++] = now_ms();
}

/** Milliseconds of the launches whose kernel's name begins with `stage` and two underscores. */
static double stage_ms(const char *stage) {
    double sum = 0.0;
    const size_t length = strlen(stage);
    for (int i = 0; i < launches.n; i++)
        if (strncmp(launches.name[i], stage, length) == 0 && strncmp(launches.name[i] + length, "__", 2) == 0)
            sum += launches.begin[i + 1] - launches.begin[i];
    return sum;
}

/** Least milliseconds so far of everything that is timed, for one thread count. */
typedef struct times {
    double sgemm, forward, centroid, gate, index, attend, backward;
} times;

static void keep_least(double *least, double ms) {
    if (*least == 0.0 || ms < *least) *least = ms;
}

typedef struct problem {
    int64_t length;
    float *q, *k, *v, *o, *dout, *dq, *dk, *dv, *lse;
    int32_t *selection;
    float *a, *b, *c; /* of sgemm */
} problem;

typedef struct contestant {
    int n_threads;
    moba_context *context;
    moba_plan *plan;
    void *workspace, *saved;
    size_t workspace_bytes, saved_bytes;
    times least;
} contestant;

static void *allocate(size_t bytes) {
    void *p = aligned_alloc(256, (bytes + 511) / 256 * 256);
    if (p == NULL) {
        fprintf(stderr, "cpu_rates: no memory for %zu bytes\n", bytes);
        exit(2);
    }
    memset(p, 0, bytes);
    return p;
}

static float *normal(size_t n, uint64_t seed) {
    float *p = allocate(n * sizeof(float));
    uint64_t s = seed * 0x9E3779B97F4A7C15u + 1;
    for (size_t i = 0; i < n; i++) {
        double u[2];
        for (int j = 0; j < 2; j++) {
            s ^= s << 13, s ^= s >> 7, s ^= s << 17;
            u[j] = ((double)(s >> 11) + 0.5) / 9007199254740992.0;
        }
        p[i] = (float)(sqrt(-2.0 * log(u[0])) * cos(6.283185307179586 * u[1]));
    }
    return p;
}

static moba_buffer buffer(const void *p) { return (moba_buffer){(uint64_t)(uintptr_t)p, 0}; }
static moba_tensor tensor(const problem *p, const float *data) {
    const int64_t token = (int64_t)HEADS * HEAD_DIM;
    return (moba_tensor){buffer(data), token, HEAD_DIM, p->length * token};
}
static moba_inputs inputs(const problem *p) {
    moba_inputs in = {.q = tensor(p, p->q), .k = tensor(p, p->k), .v = tensor(p, p->v), .batch = 1};
    in.total_q = in.total_k = p->length;
    return in;
}

static contestant enter(const problem *p, int n_threads) {
    contestant c = {.n_threads = n_threads};
    moba_context_options options = MOBA_CONTEXT_OPTIONS_INIT;
    options.backend = "cpu";
    options.n_threads = n_threads;
    check(moba_context_create(&options, &c.context), "moba_context_create");
    moba_problem problem = MOBA_PROBLEM_INIT;
    problem.n_q_heads = problem.n_kv_heads = HEADS;
    problem.head_dim = HEAD_DIM;
    problem.block_size = BLOCK;
    problem.top_k = TOP_K;
    problem.max_total_q = problem.max_total_k = p->length;
    check(moba_plan_create(c.context, &problem, &c.plan), "moba_plan_create");
    check(moba_plan_workspace(c.plan, &c.workspace_bytes), "moba_plan_workspace");
    check(moba_plan_saved(c.plan, &c.saved_bytes), "moba_plan_saved");
    c.workspace = allocate(c.workspace_bytes);
    c.saved = allocate(c.saved_bytes);
    return c;
}

static void time_sgemm(const problem *p, contestant *c) {
    openblas_set_num_threads(c->n_threads);
    const double begin = now_ms();
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, GEMM, GEMM, GEMM, 1.0f, p->a, GEMM, p->b, GEMM, 0.0f, p->c,
                GEMM);
    keep_least(&c->least.sgemm, now_ms() - begin);
}

static void time_forward(const problem *p, contestant *c) {
    moba_forward_args args = MOBA_FORWARD_ARGS_INIT;
    args.in = inputs(p);
    args.o = tensor(p, p->o);
    args.lse = buffer(p->lse);
    args.selection = buffer(p->selection);
    args.saved = buffer(c->saved);
    args.saved_bytes = c->saved_bytes;
    args.workspace = buffer(c->workspace);
    args.workspace_bytes = c->workspace_bytes;
    launches.n = 0;
    const double begin = now_ms();
    check(moba_forward(c->plan, (moba_stream){NULL}, &args), "moba_forward");
    const double end = now_ms();
    launches.begin[launches.n] = end;
    keep_least(&c->least.forward, end - begin);
    keep_least(&c->least.centroid, stage_ms("centroid"));
    keep_least(&c->least.gate, stage_ms("gate"));
    keep_least(&c->least.index, stage_ms("index"));
    keep_least(&c->least.attend, stage_ms("attend"));
}

static void time_backward(const problem *p, contestant *c) {
    moba_backward_args args = MOBA_BACKWARD_ARGS_INIT;
    args.in = inputs(p);
    args.o = tensor(p, p->o);
    args.lse = buffer(p->lse);
    args.dout = tensor(p, p->dout);
    args.saved = buffer(c->saved);
    args.saved_bytes = c->saved_bytes;
    args.dq = tensor(p, p->dq);
    args.dk = tensor(p, p->dk);
    args.dv = tensor(p, p->dv);
    args.workspace = buffer(c->workspace);
    args.workspace_bytes = c->workspace_bytes;
    launches.n = 0;
    const double begin = now_ms();
    check(moba_backward(c->plan, (moba_stream){NULL}, &args), "moba_backward");
    keep_least(&c->least.backward, now_ms() - begin);
}

/** Selected (query, key) pairs that the causal mask leaves, over all heads. */
static double useful_pairs(const problem *p) {
    double pairs = 0.0;
    for (int64_t t = 0; t < p->length; t++)
        for (int i = 0; i < HEADS * TOP_K; i++) {
            const int32_t j = p->selection[t * HEADS * TOP_K + i];
            if (j < 0) continue;
            const int64_t visible = t + 1 - (int64_t)j * BLOCK;
            pairs += (double)(visible < BLOCK ? visible : BLOCK);
        }
    return pairs;
}

static int failures;
static void expect(const char *what, double value, int at_least, double limit) {
    const int met = at_least ? value >= limit : value <= limit;
    if (!met) failures++;
    printf("  %-52s %6.3f  (%s %.2f)  %s\n", what, value, at_least ? "at least" : "at most", limit,
           met ? "met" : "MISSED");
}

int main(int argc, char **argv) {
    problem p = {.length = argc > 1 ? atoll(argv[1]) : 16384};
    const int repeats = argc > 2 ? atoi(argv[2]) : 5;
    const int cpu_time = argc > 3 && strcmp(argv[3], "cpu") == 0;
    if (p.length < 1 || repeats < 1 || argc > 4 || (argc == 4 && !cpu_time)) {
        fprintf(stderr, "usage: cpu_rates [length [repeats [cpu]]], both numbers at least 1\n");
        return 2;
    }
    if (cpu_time) clock_id = CLOCK_THREAD_CPUTIME_ID;
    const int n_contestants = cpu_time ? 1 : 2;
    const size_t n = (size_t)p.length * HEADS * HEAD_DIM;
    p.q = normal(n, 1), p.k = normal(n, 2), p.v = normal(n, 3), p.dout = normal(n, 4);
    p.o = allocate(n * sizeof(float)), p.dq = allocate(n * sizeof(float)), p.dk = allocate(n * sizeof(float));
    p.dv = allocate(n * sizeof(float)), p.lse = allocate((size_t)p.length * HEADS * sizeof(float));
    p.selection = allocate((size_t)p.length * HEADS * TOP_K * sizeof(int32_t));
    p.a = normal(GEMM * GEMM, 5), p.b = normal(GEMM * GEMM, 6), p.c = allocate(GEMM * GEMM * sizeof(float));

    contestant two[2] = {{0}};
    for (int i = 0; i < n_contestants; i++)
        two[i] = enter(&p, i + 1);
    moba_set_log(on_log, NULL, MOBA_LOG_RUN);
    for (int r = 0; r < repeats; r++)
        for (int i = 0; i < n_contestants; i++) {
            for (int s = 0; s < 4; s++)
                time_sgemm(&p, &two[i]);
            time_forward(&p, &two[i]);
            for (int s = 0; s < 4; s++)
                time_sgemm(&p, &two[i]);
            time_backward(&p, &two[i]);
        }

    const double pairs = useful_pairs(&p), gemm_flops = 2.0 * GEMM * GEMM * GEMM;
    printf("OpenBLAS core %s; kernels %s, %s; length %lld; least of %d\n", openblas_get_corename(),
           moba_plan_kernel(two[0].plan, "attend"), moba_plan_kernel(two[0].plan, "attend_bwd"), (long long)p.length,
           repeats);
    printf("workspace %.1f MB, saved %.1f MB; q + k + v + o %.1f MB\n", 1e-6 * (double)two[0].workspace_bytes,
           1e-6 * (double)two[0].saved_bytes, 4e-6 * 4.0 * (double)n);
    for (int i = 0; i < n_contestants; i++) {
        const times *t = &two[i].least;
        const double sgemm = 1e-6 * gemm_flops / t->sgemm;
        printf(
            "%d thread%s: sgemm %.1f GFLOP/s; forward %.1f ms = centroid %.1f + gate %.1f + index %.1f + attend %.1f; "
            "backward %.1f ms\n",
            two[i].n_threads, i ? "s" : "", sgemm, t->forward, t->centroid, t->gate, t->index, t->attend, t->backward);
        expect("forward attend, share of sgemm's rate", 4e-6 * HEAD_DIM * pairs / t->attend / sgemm, 1, 0.50);
        expect("backward, share of sgemm's rate", 10e-6 * HEAD_DIM * pairs / t->backward / sgemm, 1, 0.40);
        /* The gate grows with the square of the length, attention with the length: the limit is for 16384. */
        if (p.length <= 16384) expect("gate + index, share of the forward", (t->gate + t->index) / t->forward, 0, 0.15);
    }
    if (n_contestants == 2) {
        const times *one = &two[0].least, *both = &two[1].least;
        const double sgemm = one->sgemm / both->sgemm;
        expect("forward, scaling to two threads over sgemm's", one->forward / both->forward / sgemm, 1, 0.95);
        expect("backward, scaling to two threads over sgemm's", one->backward / both->backward / sgemm, 1, 0.95);
    }
    moba_set_log(NULL, NULL, MOBA_LOG_NONE);
    for (int i = 0; i < n_contestants; i++) {
        moba_plan_destroy(two[i].plan);
        moba_context_destroy(two[i].context);
        free(two[i].workspace);
        free(two[i].saved);
    }
    float *const all[] = {p.q, p.k, p.v, p.o, p.dout, p.dq, p.dk, p.dv, p.lse, p.a, p.b, p.c};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        free(all[i]);
    free(p.selection);
    return failures ? 1 : 0;
}
