/* SPDX-License-Identifier: Apache-2.0
 *
 * Backends and capability tiers under test, and the record of failures.
 */
#include <criterion/criterion.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "harness.h"

enum { MAX_SESSIONS = 32, MAX_REPORTED = 12 };

static int n_failures;

_Noreturn void th_fatal(const char *format, ...) {
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    cr_assert(false, "%s", text);
    abort();
}

void *th_allocate(size_t n, size_t size) {
    void *p = calloc(n > 0 ? n : 1, size);
    if (p == NULL) th_fatal("the test is out of memory: %zu * %zu bytes", n, size);
    return p;
}

uint64_t th_seed(void) {
    const char *text = getenv("MOBA_TEST_SEED");
    return text != NULL ? strtoull(text, NULL, 10) : 1;
}

static moba_context *open_context(const char *backend, const char *mask, int32_t n_threads) {
    moba_context_options options = MOBA_CONTEXT_OPTIONS_INIT;
    moba_context *context = NULL;
    options.backend = backend;
    options.n_threads = n_threads;
    if (*mask != '\0') {
        setenv("MOBA_CAPS_MASK", mask, 1);
    } else {
        unsetenv("MOBA_CAPS_MASK");
    }
    moba_status status = moba_context_create(&options, &context);
    if (status != MOBA_OK)
        th_fatal("%s (mask '%s'): %s: %s", backend, mask, moba_status_name(status), moba_last_error());
    return context;
}

moba_context *th_context_like(const th_session *session, int32_t n_threads) {
    return open_context(session->backend, session->mask, n_threads);
}

/* Opens the unmasked backend, then one session for each capability hidden from the last to the first. MOBA_TEST_TIERS=0
 * opens the unmasked one only, MOBA_TEST_TIERS=-NAME,... only the one with that mask. */
static size_t open_backend(th_session *sessions, const char *backend) {
    const char *tiers = getenv("MOBA_TEST_TIERS");
    size_t n = 0;
    snprintf(sessions[0].backend, sizeof sessions[0].backend, "%s", backend);
    snprintf(sessions[0].mask, sizeof sessions[0].mask, "%s", tiers != NULL && *tiers == '-' ? tiers : "");
    sessions[0].context = open_context(backend, sessions[0].mask, 0);
    n++;
    if (tiers != NULL && (strcmp(tiers, "0") == 0 || *tiers == '-')) return n;

    moba_device_description device = MOBA_DEVICE_DESCRIPTION_INIT;
    cr_assert_eq(moba_context_device(sessions[0].context, &device), MOBA_OK, "%s", moba_last_error());
    char names[256], mask[512] = "";
    snprintf(names, sizeof names, "%s", device.capabilities);
    for (;;) {
        char *last = strrchr(names, ' ');
        const char *name = last != NULL ? last + 1 : names;
        if (*name == '\0') break;
        size_t used = strlen(mask);
        if (used + strlen(name) + 3 > sizeof sessions->mask) th_fatal("the mask %s is too long", mask);
        snprintf(mask + used, sizeof mask - used, "%s-%s", used > 0 ? "," : "", name);
        cr_assert(n < MAX_SESSIONS, "more than %d sessions", MAX_SESSIONS);
        th_session *s = &sessions[n++];
        snprintf(s->backend, sizeof s->backend, "%s", backend);
        memcpy(s->mask, mask, strlen(mask) + 1);
        s->context = open_context(backend, mask, 0);
        if (last == NULL) break;
        *last = '\0';
    }
    return n;
}

th_session *th_sessions_open(size_t *n) {
    const char *list = getenv("MOBA_TEST_BACKENDS");
    th_session *sessions = th_allocate(MAX_SESSIONS, sizeof *sessions);
    char names[256];
    snprintf(names, sizeof names, "%s", list != NULL && *list != '\0' ? list : "cpu");
    n_failures = 0;
    *n = 0;
    for (char *save = NULL, *name = strtok_r(names, ",", &save); name != NULL; name = strtok_r(NULL, ",", &save))
        *n += open_backend(sessions + *n, name);
    return sessions;
}

void th_sessions_close(th_session *sessions, size_t n) {
    for (size_t i = 0; i < n; i++)
        moba_context_destroy(sessions[i].context);
    free(sessions);
}

void th_fail(const th_session *session, const th_case *c, const char *format, ...) {
    va_list arguments;
    if (++n_failures > MAX_REPORTED) return;
    char text[512];
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    fprintf(stderr, "FAILED %s: %s\n", c != NULL ? c->text : "", text);
    if (session == NULL) return;
    fprintf(stderr, "  reproduce: %s%s%smoba bench --check '%s' --seed %llu --backend %s\n",
            *session->mask != '\0' ? "MOBA_CAPS_MASK=" : "", session->mask, *session->mask != '\0' ? " " : "",
            c != NULL ? c->problem_text : "", c != NULL ? (unsigned long long)c->seed : 0ull, session->backend);
}

void th_finish(void) { cr_assert_eq(n_failures, 0, "%d checks failed; the first are above", n_failures); }

bool th_ok(const th_session *session, const th_case *c, moba_status status, const char *what) {
    if (status == MOBA_OK) return true;
    th_fail(session, c, "%s: %s: %s", what, moba_status_name(status), moba_last_error());
    return false;
}

/* MOBA_TEST_SHARE=i/n: every n-th problem from the i-th on, where a problem's dtypes count one after the other, so that
 * the n shares make up the whole and each has every dtype. */
static bool in_share(size_t problem, size_t dtype) {
    const char *text = getenv("MOBA_TEST_SHARE");
    unsigned share = 0, n = 1;
    if (text != NULL && (sscanf(text, "%u/%u", &share, &n) != 2 || share >= n))
        th_fatal("MOBA_TEST_SHARE is \"%s\"; it must be i/n with i below n", text);
    return (problem + dtype) % n == share;
}

void th_for_each(const char *const *problems, size_t n, th_check check) {
    static const char *const dtypes[] = {"f32", "f16", "bf16"};
    size_t n_sessions;
    th_session *sessions = th_sessions_open(&n_sessions);
    for (size_t i = 0; i < n; i++) {
        const char *at = strchr(problems[i], '@');
        for (size_t d = 0; d < (at != NULL ? 3u : 1u); d++) {
            if (!in_share(i, d)) continue;
            char text[256];
            int before = at != NULL ? (int)(at - problems[i]) : (int)strlen(problems[i]);
            snprintf(text, sizeof text, "%.*s%s%s", before, problems[i], at != NULL ? dtypes[d] : "",
                     at != NULL ? at + 1 : "");
            th_case *c = th_case_new(text, th_seed());
            check(sessions, n_sessions, c);
            th_case_free(c);
        }
    }
    th_sessions_close(sessions, n_sessions);
    th_finish();
}
