/* SPDX-License-Identifier: Apache-2.0
 *
 * Status names and numbers, the thread's last error, log callback, overflow-safe sizes, version.
 */
#include <criterion/criterion.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "core/status.h"

Test(status, numbers_are_frozen) {
    static const struct {
        int number;
        const char *name;
    } table[] = {{0, "MOBA_OK"},
                 {1, "MOBA_ERROR_INVALID_ARGUMENT"},
                 {2, "MOBA_ERROR_UNSUPPORTED"},
                 {3, "MOBA_ERROR_OUT_OF_MEMORY"},
                 {4, "MOBA_ERROR_WORKSPACE_TOO_SMALL"},
                 {5, "MOBA_ERROR_UNKNOWN_BACKEND"},
                 {6, "MOBA_ERROR_BACKEND_UNAVAILABLE"},
                 {7, "MOBA_ERROR_WRONG_CONTEXT"},
                 {8, "MOBA_ERROR_INVALID_DATA"},
                 {9, "MOBA_ERROR_LAUNCH_FAILED"},
                 {10, "MOBA_ERROR_DEVICE_LOST"},
                 {11, "MOBA_ERROR_CAPTURE"},
                 {12, "MOBA_ERROR_BAD_ENVIRONMENT"},
                 {13, "MOBA_ERROR_INTERNAL"},
                 {14, "MOBA_ERROR_UNKNOWN"},
                 {-1, "MOBA_ERROR_UNKNOWN"}};
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        cr_assert_str_eq(moba_status_name((moba_status)table[i].number), table[i].name);
    cr_assert_eq(MOBA_F32, 0);
    cr_assert_eq(MOBA_F16, 1);
    cr_assert_eq(MOBA_BF16, 2);
}

static void *other_thread(void *unused) {
    (void)unused;
    static char seen[64];
    snprintf(seen, sizeof seen, "%s", moba_last_error());
    mobai_fail(MOBA_ERROR_INTERNAL, "of the other thread");
    return seen;
}

Test(status, last_error_belongs_to_the_thread) {
    cr_assert_str_eq(moba_last_error(), "");
    cr_assert_eq(mobai_fail(MOBA_ERROR_UNSUPPORTED, "head_dim is %d", 257), MOBA_ERROR_UNSUPPORTED);
    cr_assert_str_eq(moba_last_error(), "head_dim is 257");
    pthread_t thread;
    void *seen;
    cr_assert_eq(pthread_create(&thread, NULL, other_thread, NULL), 0);
    cr_assert_eq(pthread_join(thread, &seen), 0);
    cr_assert_str_eq((const char *)seen, "");
    cr_assert_str_eq(moba_last_error(), "head_dim is 257");
}

Test(status, a_sentence_may_quote_the_last_error_and_may_be_long) {
    char text[8192];
    mobai_fail(MOBA_ERROR_INTERNAL, "inner");
    mobai_fail(MOBA_ERROR_INTERNAL, "outer: %s", moba_last_error());
    cr_assert_str_eq(moba_last_error(), "outer: inner");
    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    mobai_fail(MOBA_ERROR_INTERNAL, "%s", text);
    cr_assert_gt(strlen(moba_last_error()), 500);
    cr_assert_lt(strlen(moba_last_error()), sizeof text);
}

typedef struct record {
    int n;
    moba_log_level level;
    char line[128];
} record;

static void listen(void *user, moba_log_level level, const char *line) {
    record *r = user;
    r->n++;
    r->level = level;
    snprintf(r->line, sizeof r->line, "%s", line);
}

Test(status, log_callback_gets_lines_up_to_its_level) {
    record r = {0, MOBA_LOG_NONE, ""};
    moba_set_log(listen, &r, MOBA_LOG_PLAN);
    mobai_log(MOBA_LOG_RUN, "too detailed");
    cr_assert_eq(r.n, 0);
    cr_assert(mobai_log_enabled(MOBA_LOG_PLAN) && !mobai_log_enabled(MOBA_LOG_RUN));
    mobai_log(MOBA_LOG_PLAN, "line %d", 7);
    cr_assert(r.n == 1 && r.level == MOBA_LOG_PLAN);
    cr_assert_str_eq(r.line, "line 7");
    mobai_fail(MOBA_ERROR_INTERNAL, "failed");
    cr_assert(r.n == 2 && r.level == MOBA_LOG_ERROR);
    cr_assert_str_eq(r.line, "failed");
    moba_set_log(listen, &r, MOBA_LOG_NONE);
    mobai_fail(MOBA_ERROR_INTERNAL, "silent");
    cr_assert_eq(r.n, 2);
    moba_set_log(NULL, NULL, MOBA_LOG_ALL);
    cr_assert(!mobai_log_enabled(MOBA_LOG_ERROR), "without MOBA_VERBOSE the default is silence");
}

Test(status, sizes_do_not_wrap) {
    size_t out = 5;
    cr_assert(!mobai_mul_size(SIZE_MAX, 2, &out) && out == 5);
    cr_assert(!mobai_mul_size((size_t)1 << 32, (size_t)1 << 32, &out) && out == 5);
    cr_assert(mobai_mul_size(SIZE_MAX, 1, &out) && out == SIZE_MAX);
    cr_assert(mobai_mul_size(SIZE_MAX, 0, &out) && out == 0);
    cr_assert(mobai_mul_size(0, SIZE_MAX, &out) && out == 0);
    out = 5;
    cr_assert(!mobai_add_size(SIZE_MAX, 1, &out) && out == 5);
    cr_assert(mobai_add_size(SIZE_MAX - 1, 1, &out) && out == SIZE_MAX);
}

Test(status, version_matches_the_header) {
    char expected[32];
    snprintf(expected, sizeof expected, "%d.%d.%d", MOBA_VERSION_MAJOR, MOBA_VERSION_MINOR, MOBA_VERSION_PATCH);
    cr_assert_str_eq(moba_version(), expected);
}
