/* SPDX-License-Identifier: Apache-2.0
 *
 * Bit equality: replays, thread counts, the deterministic flag, buffers at other addresses.
 */
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "harness.h"

#define COUNT(x) (sizeof(x) / sizeof *(x))

/* 100 replays on one plan; the workspace holds other bytes each time. */
static void check_replays(const th_session *sessions, size_t n, const th_case *c) {
    for (size_t i = 0; i < n; i++) {
        th_exec *e = th_open(&sessions[i], c, NULL);
        th_result first, again;
        if (e != NULL && th_run(e, TH_FORWARD, NULL, &first)) {
            for (int replay = 1; replay < 100; replay++) {
                bool same = th_run(e, TH_FORWARD, NULL, &again) &&
                            th_check_same_result(&sessions[i], c, "replay", &first, &again);
                th_result_free(&again);
                if (!same) break;
            }
            th_result_free(&first);
        }
        th_close(e);
    }
}

Test(determinism, a_hundred_forward_replays_are_identical) {
    static const char *const problems[] = {
        "b1q130k130h4g2d64B32t3c,@;fill=equal",
        "b1q130k130h4g2d64B16t4c,@",
        "b3q60k60h2g2d32B16t3n,@,kconv=3,lens=60+1+20/60+1+20;tail=2",
    };
    th_for_each(problems, COUNT(problems), check_replays);
}

static void check_backward_replays(const th_session *sessions, size_t n, const th_case *c) {
    for (size_t i = 0; i < n; i++) {
        th_exec *e = th_open(&sessions[i], c, NULL);
        th_result first, again;
        if (e != NULL && th_run(e, TH_FORWARD | TH_BACKWARD, NULL, &first)) {
            for (int replay = 1; replay < 20; replay++) {
                bool same = th_run(e, TH_FORWARD | TH_BACKWARD, NULL, &again) &&
                            th_check_same_result(&sessions[i], c, "deterministic replay", &first, &again);
                th_result_free(&again);
                if (!same) break;
            }
            th_result_free(&first);
        }
        th_close(e);
    }
}

Test(determinism, twenty_deterministic_backwards_are_identical) {
    static const char *const problems[] = {
        "b1q300k300h4g2d64B32t4c,@,det",
        "b2q90k90h4g1d128B16t3c,@,det,kconv=3",
        "b1q150k150h2g2d64B16t1c,@,det,dense",
    };
    th_for_each(problems, COUNT(problems), check_backward_replays);
}

/* Two executions whose buffers lie elsewhere. */
static void check_fresh_buffers(const th_session *sessions, size_t n, const th_case *c) {
    for (size_t i = 0; i < n; i++) {
        th_exec *a = th_open(&sessions[i], c, NULL), *b = th_open(&sessions[i], c, NULL);
        th_result x, y;
        bool ok = a != NULL && b != NULL && th_run(a, TH_FORWARD | TH_BACKWARD, NULL, &x);
        if (ok && th_run(b, TH_FORWARD | TH_BACKWARD, NULL, &y)) {
            th_check_same_result(&sessions[i], c, "two plans", &x, &y);
            th_result_free(&y);
        }
        if (ok) th_result_free(&x);
        th_close(a);
        th_close(b);
    }
}

Test(determinism, plans_of_one_problem_agree) {
    static const char *const problems[] = {"b1q200k200h4g2d64B32t3c,@,det;layout=sliced",
                                           "b1q100k100h3g3d7B16t3c,@,det"};
    th_for_each(problems, COUNT(problems), check_fresh_buffers);
}

/* Any number of threads gives the same bits. On backends without threads the option is ignored. */
static void check_threads(const th_session *sessions, size_t n, const th_case *c) {
    static const int32_t threads[] = {1, 2, 3, 7};
    for (size_t i = 0; i < n; i++) {
        th_result first, other;
        memset(&first, 0, sizeof first);
        for (size_t x = 0; x < COUNT(threads); x++) {
            moba_context *context = th_context_like(&sessions[i], threads[x]);
            th_exec *e = th_open_in(&sessions[i], context, c, NULL);
            th_result *r = x == 0 ? &first : &other;
            if (e != NULL && th_run(e, TH_FORWARD | TH_BACKWARD, NULL, r) && x > 0) {
                char what[64];
                snprintf(what, sizeof what, "1 thread and %d threads", threads[x]);
                th_check_same_result(&sessions[i], c, what, &first, &other);
                th_result_free(&other);
            }
            th_close(e);
            moba_context_destroy(context);
        }
        th_result_free(&first);
    }
}

Test(determinism, thread_counts_agree) {
    static const char *const problems[] = {
        "b1q400k400h4g2d64B32t4c,@,det",
        "b3q150k150h2g1d128B16t3n,@,det,kconv=3,lens=150+0+40/150+7+40;tail=3",
        "b2q100k100h8g2d64B32t1c,@,det,dense",
        "b1q300k300h1g1d32B64t2c,@,det;fill=equal",
    };
    th_for_each(problems, COUNT(problems), check_threads);
}
