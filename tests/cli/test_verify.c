/* SPDX-License-Identifier: Apache-2.0
 *
 * The verification of `moba bench` can fail: outputs of the CPU backend pass, and each single fault put into them is
 * found, in a problem that is checked whole and in one that is sampled.
 */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli/bench_device.h"
#include "core/convert.h"

/** A problem, its inputs and reference, and the outputs of a forward and a backward. */
typedef struct fixture {
    mobai_bench_problem problem;
    mobai_bench_inputs inputs;
    mobai_reference reference;
    moba_context *context;
    mobai_bench_device device;
    mobai_bench_outputs outputs;
} fixture;

static void open_fixture(fixture *f, const char *text) {
    mobai_message message;
    mobai_timing timing;
    moba_context_options options = MOBA_CONTEXT_OPTIONS_INIT;
    options.backend = "cpu";
    cr_assert(mobai_problem_parse(text, false, &f->problem, &message), "%s", message.text);
    cr_assert(mobai_inputs_random(&f->problem, 5, &f->inputs, &message), "%s", message.text);
    cr_assert(mobai_reference_open(&f->problem, &f->inputs, &f->reference, &message), "%s", message.text);
    cr_assert_eq(moba_context_create(&options, &f->context), MOBA_OK, "%s", moba_last_error());
    cr_assert_eq(mobai_bench_open(f->context, &f->problem, &f->inputs, true, &f->device), MOBA_OK, "%s",
                 moba_last_error());
    for (int pass = MOBAI_PASS_FWD; pass <= MOBAI_PASS_BWD; pass++) {
        cr_assert_eq(mobai_bench_time(&f->device, (mobai_pass)pass, 1, &timing), MOBA_OK, "%s", moba_last_error());
        cr_assert_eq(mobai_bench_read(&f->device, (mobai_pass)pass, &f->outputs, &message), MOBA_OK);
    }
}

static void close_fixture(fixture *f) {
    mobai_bench_close(&f->device);
    moba_context_destroy(f->context);
    mobai_reference_close(&f->reference);
    mobai_inputs_free(&f->inputs);
    mobai_problem_free(&f->problem);
}

static mobai_verdict verify(const fixture *f, mobai_pass pass) {
    mobai_verdict verdict;
    mobai_message message;
    cr_assert(mobai_verify(&f->reference, &f->outputs, pass, 3, &verdict, &message), "%s", message.text);
    cr_assert_eq(verdict.verified, verdict.fault.text[0] == '\0');
    return verdict;
}

/** The outputs pass now; `what` names the fault that is put in next. */
static void expect(const fixture *f, mobai_pass pass, bool verified, const char *what) {
    const mobai_verdict verdict = verify(f, pass);
    cr_assert_eq(verdict.verified, verified, "%s, %s: %s", mobai_pass_name(pass), what,
                 verified ? verdict.fault.text : "was not found");
}

/** Element `at` of a tensor of the problem's type, changed by `by` (relative to 1 + |x|). */
static void nudge(const fixture *f, const void *tensor, size_t at, float by) {
    if (f->problem.dtype == MOBA_F32) {
        float *x = (float *)(uintptr_t)tensor + at;
        *x += by * (1.0f + fabsf(*x));
    } else {
        uint16_t *x = (uint16_t *)(uintptr_t)tensor + at;
        const float value = mobai_f32_from_bf16(*x);
        *x = mobai_bf16_from_f32(value + by * (1.0f + fabsf(value)));
    }
}

static const char *const whole[] = {
    "b2q200k200h4g2d64B32t3c,f32",
    "b2q200k200h4g2d64B32t3c,bf16",
    "h4g2d64B32t4c,f32,sink=1,local=2,kconv=3,lens=130+1+0+60/140+9+0+60",
    "b1q150k150h2g2d40B32t2n,f32",
};
enum { N_WHOLE = sizeof whole / sizeof whole[0] };

Test(verify, finds_faults_in_outputs) {
    for (size_t i = 0; i < N_WHOLE; i++) {
        fixture f = {0};
        open_fixture(&f, whole[i]);
        const float small = f.problem.dtype == MOBA_F32 ? 1e-5f : 4e-2f;
        expect(&f, MOBAI_PASS_FWD, true, whole[i]);
        expect(&f, MOBAI_PASS_BWD, true, whole[i]);
        const size_t q_last = (size_t)f.inputs.total_q * (size_t)f.problem.n_q_heads * (size_t)f.problem.head_dim - 1;
        const size_t k_last = (size_t)f.inputs.total_k * (size_t)f.problem.n_kv_heads * (size_t)f.problem.head_dim - 1;
        const struct {
            const char *name;
            const void *tensor;
            size_t at;
            mobai_pass pass;
            float scale;
        } faults[] = {
            {"o, first", f.outputs.o, 0, MOBAI_PASS_FWD, 1.0f},
            {"o, last", f.outputs.o, q_last, MOBAI_PASS_FWD, 1.0f},
            {"dq, middle", f.outputs.dq, q_last / 2, MOBAI_PASS_BWD, 10.0f},
            {"dk, first", f.outputs.dk, 0, MOBAI_PASS_BWD, 100.0f},
            {"dk, last", f.outputs.dk, k_last, MOBAI_PASS_BWD, 100.0f},
            {"dv, middle", f.outputs.dv, k_last / 2, MOBAI_PASS_BWD, 100.0f},
        };
        for (size_t e = 0; e < sizeof faults / sizeof faults[0]; e++) {
            const float by = fminf(small * faults[e].scale, 0.3f);
            const size_t bytes = f.problem.dtype == MOBA_F32 ? 4 : 2;
            char keep[4];
            char *place = (char *)(uintptr_t)faults[e].tensor + faults[e].at * bytes;
            memcpy(keep, place, bytes);
            nudge(&f, faults[e].tensor, faults[e].at, by);
            expect(&f, faults[e].pass, false, faults[e].name);
            memset(place, 0xff, bytes);
            expect(&f, faults[e].pass, false, "never written");
            memcpy(place, keep, bytes);
        }
        float *lse = (float *)(uintptr_t)f.outputs.lse;
        lse[3] += 1e-3f;
        expect(&f, MOBAI_PASS_FWD, false, "lse");
        lse[3] -= 1e-3f;
        if (f.outputs.dw != NULL && f.problem.kconv_width > 0) {
            float *dw = (float *)(uintptr_t)f.outputs.dw;
            dw[7] += 0.01f * (1.0f + fabsf(dw[7]));
            expect(&f, MOBAI_PASS_BWD, false, "dw");
        }
        close_fixture(&f);
    }
}

Test(verify, finds_faults_in_selections) {
    for (size_t i = 0; i < N_WHOLE; i++) {
        fixture f = {0};
        open_fixture(&f, whole[i]);
        const int32_t top_k = f.problem.top_k;
        int32_t *row = (int32_t *)(uintptr_t)f.outputs.selection +
                       ((size_t)f.inputs.total_q * (size_t)f.problem.n_q_heads - 1) * (size_t)top_k;
        int32_t keep[8];
        memcpy(keep, row, (size_t)top_k * sizeof keep[0]);
        expect(&f, MOBAI_PASS_ROUTE, true, whole[i]);
        int32_t last = top_k - 1; /* of the entries that are not padding; at least two here */
        while (row[last] < 0)
            last--;
        cr_assert(last >= 1);
        row[0] = row[1];
        expect(&f, MOBAI_PASS_ROUTE, false, "repeated id");
        memcpy(row, keep, sizeof keep[0]);
        row[last] = 100000;
        expect(&f, MOBAI_PASS_ROUTE, false, "id out of range");
        row[last] = -1;
        expect(&f, MOBAI_PASS_ROUTE, false, "a block too few");
        row[last] = keep[last];
        row[0] = -1;
        expect(&f, MOBAI_PASS_ROUTE, false, "-1 before an id");
        memcpy(row, keep, sizeof keep[0]);
        expect(&f, MOBAI_PASS_ROUTE, true, "repaired");
        close_fixture(&f);
    }
}

/** A routed block exchanged for one that scores worse by far: legal in form, found by regret. */
Test(verify, finds_regret) {
    fixture f = {0};
    open_fixture(&f, "b1q400k400h1g1d64B16t3n,f32");
    int32_t *row = (int32_t *)(uintptr_t)f.outputs.selection + 200 * 3;
    /* Of all triples of neighbouring ids, at most one can be the best three. */
    int found = 0;
    for (int32_t first = 0; first < 23; first += 3) {
        for (int32_t m = 0; m < 3; m++)
            row[m] = first + m;
        found += !verify(&f, MOBAI_PASS_ROUTE).verified;
    }
    cr_assert(found >= 7, "%d of 8 wrong selections were found", found);
    close_fixture(&f);
}

/** Too large to be checked whole: a fault that runs through a tensor is found in the sample. */
Test(verify, samples_large_problems) {
    fixture f = {0};
    open_fixture(&f, "b1q6000k6000h2g1d64B64t6c,f32");
    const mobai_verdict forward = verify(&f, MOBAI_PASS_FWD);
    cr_assert(forward.verified, "%s", forward.fault.text);
    cr_assert(forward.n_rows >= 256 && forward.n_rows < 2000, "%ld rows", (long)forward.n_rows);
    const mobai_verdict backward = verify(&f, MOBAI_PASS_BWD);
    cr_assert(backward.verified, "%s", backward.fault.text);
    cr_assert_eq(backward.n_rows, 64);
    cr_assert_eq(backward.n_blocks, 8);
    const size_t n = (size_t)f.inputs.total_q * 2 * 64;
    for (size_t i = 0; i < n; i++)
        ((float *)(uintptr_t)f.outputs.o)[i] *= 1.00001f;
    for (size_t i = 0; i < n / 2; i++)
        ((float *)(uintptr_t)f.outputs.dv)[i] *= 1.0001f;
    expect(&f, MOBAI_PASS_FWD, false, "o too large by 1e-5");
    expect(&f, MOBAI_PASS_BWD, false, "dv too large by 1e-4");
    close_fixture(&f);
}

/** dw of a problem whose dk' cannot be had whole comes from the verified dk. */
Test(verify, dw_of_large_problems) {
    static const char *const problems[] = {"b2q3000k3000h2g2d64B64t6c,f32,kconv=3",
                                           "b2q3000k3000h2g2d64B64t6c,bf16,kconv=4"};
    for (size_t i = 0; i < 2; i++) {
        fixture f = {0};
        open_fixture(&f, problems[i]);
        const mobai_verdict backward = verify(&f, MOBAI_PASS_BWD);
        cr_assert(backward.verified, "%s", backward.fault.text);
        cr_assert_eq(backward.n_blocks, 8);
        const size_t n = (size_t)2 * 64 * (size_t)f.problem.kconv_width;
        for (size_t e = 0; e < n; e++)
            ((float *)(uintptr_t)f.outputs.dw)[e] *= 1.02f;
        expect(&f, MOBAI_PASS_BWD, false, "dw too large by 2 %");
        close_fixture(&f);
    }
}

static bool differ(const float *a, const float *b, int n) {
    for (int i = 0; i < n; i++) {
        if (a[i] < b[i] || a[i] > b[i]) return true;
    }
    return false;
}

/** The same seed gives the same inputs, another seed others; they are standard normal. */
Test(verify, inputs_are_normal_and_repeatable) {
    enum { N = 100001 };
    static float a[N], b[N];
    static uint16_t h[N];
    cr_assert(mobai_fill_normal(a, MOBA_F32, N, 1, 1, 1.0) && mobai_fill_normal(b, MOBA_F32, N, 1, 1, 1.0));
    cr_assert_arr_eq(a, b, sizeof a);
    double sum = 0.0, sum2 = 0.0, sum4 = 0.0;
    for (int i = 0; i < N; i++) {
        const double x = (double)a[i];
        sum += x;
        sum2 += x * x;
        sum4 += x * x * x * x;
    }
    cr_assert(fabs(sum / N) < 0.015 && fabs(sum2 / N - 1.0) < 0.02 && fabs(sum4 / N - 3.0) < 0.15, "%g %g %g", sum / N,
              sum2 / N, sum4 / N);
    cr_assert(mobai_fill_normal(h, MOBA_BF16, N, 1, 1, 1.0));
    for (int i = 0; i < N; i++)
        cr_assert_eq(h[i], mobai_bf16_from_f32(a[i]));
    cr_assert(mobai_fill_normal(b, MOBA_F32, N, 2, 1, 1.0));
    cr_assert(differ(a, b, N));
    cr_assert(mobai_fill_normal(b, MOBA_F32, N, 1, 2, 1.0));
    cr_assert(differ(a, b, N));
}
