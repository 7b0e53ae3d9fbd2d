/* SPDX-License-Identifier: Apache-2.0
 *
 * Environment variables: the table, the parsers, and what a context makes of them. Also the registry and its refusals.
 */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/env.h"
#include "mock.h"

#define HAS(text, part) cr_assert_not_null(strstr((text), (part)), "\"%s\" lacks \"%s\"", (text), (part))

Test(environment, table_names_every_variable) {
    static const char *const names[] = {"MOBA_BACKEND", "MOBA_DEVICE",    "MOBA_KERNEL",  "MOBA_CAPS_MASK",
                                        "MOBA_VERBOSE", "MOBA_CACHE_DIR", "MOBA_VALIDATE"};
    cr_assert_eq(MOBAI_ENV_COUNT, 7);
    for (int i = 0; i < MOBAI_ENV_COUNT; i++) {
        cr_assert_str_eq(mobai_env_table[i].name, names[i]);
        cr_assert_gt(strlen(mobai_env_table[i].help), 10);
    }
    setenv("MOBA_KERNEL", "", 1);
    cr_assert_null(mobai_env_get(MOBAI_ENV_KERNEL), "an empty variable is an unset one");
}

Test(environment, parsers_take_what_is_right) {
    int32_t device = -7;
    moba_log_level level = MOBA_LOG_NONE;
    bool flag = false;
    mobai_cap_set set = 0;
    char item[16], bad[32];
    cr_assert(mobai_env_parse_device("0", &device) && device == 0);
    cr_assert(mobai_env_parse_device("1023", &device) && device == 1023);
    cr_assert(mobai_env_parse_level("all", &level) && level == MOBA_LOG_ALL);
    cr_assert(mobai_env_parse_level("error", &level) && level == MOBA_LOG_ERROR);
    cr_assert(mobai_env_parse_flag("1", &flag) && flag);
    cr_assert(mobai_env_parse_flag("0", &flag) && !flag);
    cr_assert(mobai_env_parse_caps_mask("-wgmma,-avx2", &set, bad, sizeof bad));
    cr_assert_eq(set, MOBAI_CAP_WGMMA | MOBAI_CAP_AVX2);
    const char *rest = mobai_env_next_item("cuda,cpu", item, sizeof item);
    cr_assert_str_eq(item, "cuda");
    cr_assert_str_eq(rest, "cpu");
    cr_assert_null(mobai_env_next_item(rest, item, sizeof item));
    cr_assert_str_eq(item, "cpu");
    mobai_env_next_item("a_very_long_item_name,x", item, sizeof item);
    cr_assert_str_eq(item, "a_very_long_ite");
    cr_assert(mobai_env_check_kernel("attend=*x*,gate=y", bad, sizeof bad));
    cr_assert(mobai_env_kernel_pattern("attend=*x*,gate=y", "gate", item, sizeof item));
    cr_assert_str_eq(item, "y");
    cr_assert(!mobai_env_kernel_pattern("attend=*x*", "gate", item, sizeof item));
    cr_assert(!mobai_env_kernel_pattern(NULL, "gate", item, sizeof item));
}

Test(environment, parsers_refuse_what_is_wrong_and_leave_the_result) {
    static const char *const devices[] = {"", "-1", "x", "1x", " 1", "1024", "99999999999999999999", "0x1"};
    static const char *const levels[] = {"", "ALL", "verbose", "none ", "1"};
    static const char *const flags[] = {"", "2", "yes", "11", "01"};
    static const char *const masks[] = {"",        "wgmma",          "-",       "-wgmma,",
                                        "-nosuch", "-wgmma,-nosuch", "--wgmma", "-wgmma -avx2"};
    static const char *const kernels[] = {"",         "attend",        "attend=",         "=x",
                                          "nosuch=x", "attend=x,gate", "attend=x,,gate=y"};
    int32_t device = -7;
    moba_log_level level = MOBA_LOG_RUN;
    bool flag = true;
    mobai_cap_set set = 77;
    char bad[32];
    for (size_t i = 0; i < sizeof devices / sizeof *devices; i++)
        cr_assert(!mobai_env_parse_device(devices[i], &device) && device == -7, "'%s'", devices[i]);
    for (size_t i = 0; i < sizeof levels / sizeof *levels; i++)
        cr_assert(!mobai_env_parse_level(levels[i], &level) && level == MOBA_LOG_RUN, "'%s'", levels[i]);
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++)
        cr_assert(!mobai_env_parse_flag(flags[i], &flag) && flag, "'%s'", flags[i]);
    for (size_t i = 0; i < sizeof masks / sizeof *masks; i++)
        cr_assert(!mobai_env_parse_caps_mask(masks[i], &set, bad, sizeof bad) && set == 77, "'%s'", masks[i]);
    for (size_t i = 0; i < sizeof kernels / sizeof *kernels; i++)
        cr_assert(!mobai_env_check_kernel(kernels[i], bad, sizeof bad), "'%s'", kernels[i]);
    mobai_env_parse_caps_mask("-wgmma,-nosuch", &set, bad, sizeof bad);
    cr_assert_str_eq(bad, "-nosuch");
}

/* Sets one variable, expects the refusal of a context that names the last item of its value, and unsets it. */
static void refused(const char *name, const char *value, moba_status status, const char *part) {
    moba_context_options options = MOBA_CONTEXT_OPTIONS_INIT;
    moba_context *context = (moba_context *)&options;
    setenv(name, value, 1);
    moba_status got = moba_context_create(&options, &context);
    unsetenv(name);
    cr_assert_eq(got, status, "%s=%s: %s", name, value, moba_status_name(got));
    cr_assert_null(context);
    const char *comma = strrchr(value, ',');
    HAS(moba_last_error(), comma ? comma + 1 : value);
    HAS(moba_last_error(), part);
}

Test(environment, a_context_refuses_what_it_cannot_read) {
    refused("MOBA_BACKEND", "nosuch", MOBA_ERROR_UNKNOWN_BACKEND, "cpu");
    refused("MOBA_BACKEND", "cpu,nosuch", MOBA_ERROR_UNKNOWN_BACKEND, "nosuch");
    refused("MOBA_BACKEND", "CPU", MOBA_ERROR_UNKNOWN_BACKEND, "known");
    refused("MOBA_VERBOSE", "loud", MOBA_ERROR_BAD_ENVIRONMENT, "MOBA_VERBOSE");
    setenv("MOBA_BACKEND", "cpu", 1);
    refused("MOBA_CAPS_MASK", "-nosuch", MOBA_ERROR_BAD_ENVIRONMENT, "avx512bf16");
    refused("MOBA_VALIDATE", "maybe", MOBA_ERROR_BAD_ENVIRONMENT, "0 or 1");
    refused("MOBA_KERNEL", "nosuch=x", MOBA_ERROR_BAD_ENVIRONMENT, "STAGE=PATTERN");
    refused("MOBA_DEVICE", "first", MOBA_ERROR_BAD_ENVIRONMENT, "MOBA_DEVICE");
    refused("MOBA_DEVICE", "77", MOBA_ERROR_BACKEND_UNAVAILABLE, "77");
}

Test(environment, a_named_backend_never_falls_back) {
    bool any = false;
    for (int32_t i = 0; i < moba_backend_count(); i++) {
        moba_backend_description d = MOBA_BACKEND_DESCRIPTION_INIT;
        cr_assert_eq(moba_backend_info(i, &d), MOBA_OK, "%s", moba_last_error());
        cr_assert(d.usable ? d.reason[0] == '\0' : d.reason[0] != '\0', "%s", d.name);
        if (strcmp(d.name, "cpu") == 0) cr_assert(d.built && d.usable && d.n_devices >= 1);
        if (d.usable) continue;
        any = true;
        moba_context_options options = MOBA_CONTEXT_OPTIONS_INIT;
        moba_context *context = NULL;
        options.backend = d.name;
        cr_assert_eq(moba_context_create(&options, &context), MOBA_ERROR_BACKEND_UNAVAILABLE);
        HAS(moba_last_error(), d.name);
        HAS(moba_last_error(), d.reason);
    }
    cr_assert(any || moba_backend_count() > 0);
}

typedef struct lines {
    char text[4096];
} lines;

static void collect(void *user, moba_log_level level, const char *line) {
    lines *l = user;
    (void)level;
    strncat(l->text, line, sizeof l->text - strlen(l->text) - 2);
    strcat(l->text, "\n");
}

Test(environment, a_list_takes_the_first_usable_and_logs_the_skipped) {
    moba_context_options options = MOBA_CONTEXT_OPTIONS_INIT;
    moba_context *context = NULL;
    lines log = {""};
    char list[128] = "", skipped[64] = "";
    for (int32_t i = 0; i < moba_backend_count(); i++) {
        moba_backend_description d = MOBA_BACKEND_DESCRIPTION_INIT;
        cr_assert_eq(moba_backend_info(i, &d), MOBA_OK);
        if (!d.usable) snprintf(skipped, sizeof skipped, "%s", d.name);
    }
    snprintf(list, sizeof list, "%s%scpu", skipped, skipped[0] ? "," : "");
    options.backend = list;
    moba_set_log(collect, &log, MOBA_LOG_DISPATCH);
    cr_assert_eq(moba_context_create(&options, &context), MOBA_OK, "%s", moba_last_error());
    moba_set_log(NULL, NULL, MOBA_LOG_NONE);
    cr_assert_str_eq(moba_context_backend(context), "cpu");
    HAS(log.text, "cpu taken");
    if (skipped[0]) HAS(log.text, skipped);
    moba_context_destroy(context);
}

Test(environment, options_are_checked) {
    moba_context_options options = MOBA_CONTEXT_OPTIONS_INIT;
    moba_context *context = NULL;
    cr_assert_eq(moba_context_create(&options, NULL), MOBA_ERROR_INVALID_ARGUMENT);
    options.backend = "";
    cr_assert_eq(moba_context_create(&options, &context), MOBA_ERROR_UNKNOWN_BACKEND);
    options.backend = "cpu";
    options.device = -2;
    cr_assert_eq(moba_context_create(&options, &context), MOBA_ERROR_INVALID_ARGUMENT);
    HAS(moba_last_error(), "-2");
    options.device = 5;
    cr_assert_eq(moba_context_create(&options, &context), MOBA_ERROR_BACKEND_UNAVAILABLE);
    HAS(moba_last_error(), "5");
    options.device = -1;
    options.n_threads = 1025;
    cr_assert_eq(moba_context_create(&options, &context), MOBA_ERROR_INVALID_ARGUMENT);
    HAS(moba_last_error(), "1025");
    options.n_threads = -1;
    cr_assert_eq(moba_context_create(&options, &context), MOBA_ERROR_INVALID_ARGUMENT);
    options.n_threads = 0;
    options.native = &options;
    options.backend = NULL;
    cr_assert_eq(moba_context_create(&options, &context), MOBA_ERROR_INVALID_ARGUMENT);
    options.backend = "cpu,cpu";
    cr_assert_eq(moba_context_create(&options, &context), MOBA_ERROR_INVALID_ARGUMENT);
    cr_assert_null(context);
    moba_context_destroy(NULL);
}

Test(environment, mask_hides_capabilities) {
    moba_device_description d = MOBA_DEVICE_DESCRIPTION_INIT;
    moba_context *context = mock_open();
    cr_assert_eq(moba_context_device(context, &d), MOBA_OK);
    cr_assert_str_eq(d.capabilities, "avx512 wgmma");
    moba_context_destroy(context);
    setenv("MOBA_CAPS_MASK", "-wgmma,-avx2", 1);
    context = mock_open();
    cr_assert_eq(moba_context_device(context, &d), MOBA_OK);
    cr_assert_str_eq(d.capabilities, "avx512");
    moba_context_destroy(context);
    cr_assert_eq(mock.n_open, 0);
}

Test(environment, a_device_that_cannot_be_opened_leaves_nothing) {
    moba_context_options options = MOBA_CONTEXT_OPTIONS_INIT;
    moba_context *context = NULL;
    mock_reset();
    mock.n_devices = 0;
    cr_assert_eq(mobai_context_open(&mock_backend, &options, &context), MOBA_ERROR_BACKEND_UNAVAILABLE);
    HAS(moba_last_error(), "no mock device");
    mock.n_devices = 1;
    mock.refuse_open = true;
    cr_assert_eq(mobai_context_open(&mock_backend, &options, &context), MOBA_ERROR_BACKEND_UNAVAILABLE);
    mock.refuse_open = false;
    setenv("MOBA_KERNEL", "x", 1);
    cr_assert_eq(mobai_context_open(&mock_backend, &options, &context), MOBA_ERROR_BAD_ENVIRONMENT);
    cr_assert_eq(mock.n_open, 0, "the device was closed again");
}
